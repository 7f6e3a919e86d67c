"""Diagnostics of forecasts: closed forms, ties, calibration, and figures that are well-formed."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from jepa.evaluation import diagnostics, diagnostics_surprise
from jepa.evaluation.diagnostics import Estimate
from jepa.evaluation.diagnostics_figures import Landscape, landscapes_figure, lines_figure
from jepa.metrics import prediction_gain
from jepa.schema import ActionSpec

SPACE = ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.5, 1.5), block=3)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_episodes_count_alike_however_many_windows_they_have():
    values, episode = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([7, 7, 7, 9])
    found = diagnostics.estimate(values, episode)
    assert found.value == 0.5 and (found.low, found.high) == (0.0, 1.0)
    one = diagnostics.estimate(values[:3] + 2, episode[:3])
    assert (one.value, one.low, one.high) == (2.0, 2.0, 2.0)


def test_gains_are_those_of_the_metric_and_cover_their_value():
    h, error = torch.randn(60, 4, 2, 5, generator=draw()), 0.3 * torch.randn(60, 4, 2, 5, generator=draw(1))
    forecast, now = h + error, h + torch.randn(h.shape, generator=draw(2))
    mine = (forecast - h).square().mean((2, 3))
    copy = (now - h).square().mean((2, 3))
    for step, found in enumerate(diagnostics.gains(mine, copy, torch.arange(60) // 3)):
        expected = prediction_gain(forecast[:, step], h[:, step], now[:, step])
        assert found.value == pytest.approx(float(expected), abs=1e-6)
        assert found.low < found.value < found.high
    perfect = diagnostics.gains(torch.zeros(4, 1), torch.ones(4, 1), torch.arange(4))[0]
    still = diagnostics.gains(torch.zeros(4, 1), torch.zeros(4, 1), torch.arange(4))[0]
    assert perfect.value == pytest.approx(1) and still.value == 0


def test_ranks_count_those_before_and_share_ties():
    error = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 0.2, 0.4], [0.2, 0.2, 0.1, 0.4], [1.0, 1.0, 1.0, 1.0]])
    top, reciprocal = diagnostics.ranks(error.unsqueeze(-1))
    assert top[:, 0].tolist() == [1, 0, 0, 0.25]
    assert reciprocal[:, 0].tolist() == pytest.approx([1, 1 / 3, (1 / 2 + 1 / 3) / 2, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    assert (top[3, 0], reciprocal[3, 0]) == pytest.approx(diagnostics.chance(4))


def test_rounding_breaks_no_tie():
    error = torch.ones(5, 8, 3) + 1e-7 * torch.rand(5, 8, 3, generator=draw())
    top, _ = diagnostics.ranks(error)
    assert torch.allclose(top, torch.full_like(top, 1 / 8))


def test_random_errors_rank_at_chance():
    top, reciprocal = diagnostics.ranks(torch.rand(4000, 10, 1, generator=draw()))
    expected = diagnostics.chance(10)
    assert float(top.mean()) == pytest.approx(expected[0], abs=0.02)
    assert float(reciprocal.mean()) == pytest.approx(expected[1], abs=0.02)


def test_other_plans_are_of_other_episodes():
    action = torch.arange(12.0).reshape(12, 1, 1)
    episode = torch.arange(12) // 3
    others = diagnostics.recorded_plans(action, episode, 9)
    assert others.shape == (12, 9, 1, 1)
    for number in range(12):
        assert sorted(others[number].flatten().tolist()) == [v for v in range(12) if v // 3 != number // 3]
    alone = diagnostics.recorded_plans(action[:3], episode[:3], 5)
    assert all(float(number) not in alone[number].flatten().tolist() for number in range(3))
    with pytest.raises(InputError, match="at least 2"):
        diagnostics.recorded_plans(action[:1], episode[:1], 5)


def test_random_plans_keep_to_the_space():
    plans = diagnostics.random_plans(SPACE, (200, 4))
    assert plans.shape == (200, 4, 6) and torch.equal(SPACE.clip(plans), plans) and float(plans.std()) > 0.5
    choices = ActionSpec((0.0,) * 3, (1.0,) * 3, (0.3,) * 3, (0.4,) * 3, block=2, choices=3)
    moves = diagnostics.random_plans(choices, (200, 4)).unflatten(-1, (2, 3))
    assert torch.equal(moves.sum(-1), torch.ones(200, 4, 2)) and (moves.mean((0, 1, 2)) > 0.25).all()


def test_a_grid_holds_two_dimensions_and_leaves_the_others():
    space = ActionSpec((-1.0, -2.0, -torch.inf), (1.0, 2.0, torch.inf), (0.0,) * 3, (1.0, 1.0, 2.0), block=2)
    recorded = torch.randn(4, 6, generator=draw())
    grid = diagnostics.grid_plans(space, recorded, (2, 0), 5)
    steps = grid.plans.reshape(5, 5, 4, 2, 3)  # y, x
    assert grid.x == pytest.approx([-6, -3, 0, 3, 6]) and grid.y == pytest.approx([-1, -0.5, 0, 0.5, 1])
    for row, column in np.ndindex(5, 5):
        cell = steps[row, column]
        assert (cell[..., 2] == grid.x[column]).all() and (cell[..., 0] == grid.y[row]).all()
        assert torch.equal(cell[..., 1], recorded.reshape(4, 2, 3)[..., 1])
    means = recorded.reshape(8, 3).mean(0)
    assert grid.recorded == pytest.approx((float(means[2]), float(means[0])))
    for wrong in ((0, 0), (0, 3), (-1, 0)):
        with pytest.raises(InputError, match="expected two of 0 to 2"):
            diagnostics.grid_plans(space, recorded, wrong)


def test_action_errors_are_in_deviations_and_order_leaves_the_mean():
    recorded = SPACE.denormalise(torch.randn(7, 4, 6, generator=draw()))
    shifted = SPACE.denormalise(SPACE.normalise(recorded) + 0.5)
    found = diagnostics.action_errors(shifted, recorded, SPACE)
    assert torch.allclose(found["first"], torch.full((7,), 0.5)) and torch.allclose(found["mean"], found["first"])
    found = diagnostics.action_errors(recorded.flip(1), recorded, SPACE)
    assert torch.allclose(found["mean"], torch.zeros(7), atol=1e-6) and (found["first"] > 0.1).all()
    assert torch.allclose(found["mean_cosine"], torch.ones(7))
    opposite = diagnostics.action_errors(SPACE.denormalise(-SPACE.normalise(recorded)), recorded, SPACE)
    assert torch.allclose(opposite["first_cosine"], -torch.ones(7))
    mean = diagnostics.action_errors(SPACE.denormalise(torch.zeros_like(recorded)), recorded, SPACE)
    assert mean["first_cosine"].isnan().all() and mean["first"].isfinite().all()


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_false_alarms_on_fresh_data_are_as_asked(rate):
    alarms = []
    for seed in range(40):
        surprise = torch.rand(3000, generator=draw(seed)).log().neg()
        limit = diagnostics_surprise.threshold(surprise[:1000], rate)
        alarms.append((surprise[1000:] > limit).double().mean())
    assert float(torch.stack(alarms).mean()) == pytest.approx(rate, rel=0.1)


def test_a_threshold_wants_enough_calm_steps():
    assert diagnostics_surprise.threshold(torch.arange(99.0), 0.01) == 98
    assert diagnostics_surprise.threshold(torch.arange(199.0), 0.01) == 197
    with pytest.raises(InputError, match="from 98 steps: expected 99 or more"):
        diagnostics_surprise.threshold(torch.arange(98.0), 0.01)
    with pytest.raises(InputError, match="between 0 and 1"):
        diagnostics_surprise.threshold(torch.arange(98.0), 1.0)


def test_exceedance_is_the_area_under_the_curve():
    calm, violated = torch.randn(50, generator=draw()).round(), torch.randn(40, generator=draw(1)).round() + 1
    every = [(v > c) + 0.5 * (v == c) for v in violated.tolist() for c in calm.tolist()]
    assert float(diagnostics_surprise.exceedance(violated, calm).mean()) == pytest.approx(np.mean(every))


def test_only_what_moves_is_recoloured():
    still = torch.full((3, 6, 6), 40, dtype=torch.uint8)
    video = still.repeat(5, 1, 1, 1)
    for frame in range(5):
        video[frame, :, frame, frame] = torch.tensor([200, 10, 90], dtype=torch.uint8)
    video[2, :, 5, 0] = 250  # grey
    kept = video.clone()
    assert torch.equal(diagnostics_surprise.background(video), still)
    changed = diagnostics_surprise.recoloured(video, still)
    assert torch.equal(video, kept) and changed[1, :, 1, 1].tolist() == [90, 200, 10]
    assert changed[2, :, 5, 0].tolist() == [5, 5, 5]
    assert int((changed != video).any(1).sum()) == 6
    grey = diagnostics_surprise.recoloured(video[:, :1], still[:1])
    assert int(grey[1, 0, 1, 1]) == 55


def test_a_teleport_leads_where_the_picture_differs():
    video = torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    video[6:] = 200
    targets = {diagnostics_surprise.elsewhere(video, 1, draw(seed)) for seed in range(40)}
    assert targets == {6, 7, 8, 9}
    assert all(diagnostics_surprise.elsewhere(video, 8, draw(seed)) < 6 for seed in range(20))


def test_figures_are_well_formed_and_escape():
    lines = {"a<b&c": [Estimate(0.1, 0.05, 0.2), Estimate(float("nan"), 0.0, 1.0)], "d": [Estimate(1, 1, 1)] * 2}
    drawn = [
        lines_figure("<i>", "steps", [1, 2], lines, {"level & co": 0.5}, log=True, note="how"),
        lines_figure("flat", "steps", [0, 1], {"d": lines["d"]}),
    ]
    cost = np.arange(6.0).reshape(2, 3)[:, :2]
    maps = [Landscape("<one>", [0, 1], [0, 1], c, (0.2, 0.8), ("action 0", "action 1")) for c in (cost, cost * 0)]
    drawn.append(landscapes_figure("energy", maps * 2))
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg") and "nan" not in svg.split("</style>")[1]
    assert "a&lt;b&amp;c" in drawn[0] and drawn[2].count('class="cell"') == 16
