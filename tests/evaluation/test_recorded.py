"""Plans against recorded actions in closed form: errors, floors, the draw of pairs, and what a report keeps."""

import json
from dataclasses import replace

import pytest
import torch

from jepa.errors import InputError
from jepa.evaluation import ActionReport, RecordedProtocol, Report, find_protocol, recorded_pairs
from jepa.evaluation.recorded import blind_plans, errors
from jepa.schema import ActionSpec

SPACE = ActionSpec((-9.0,) * 2, (9.0,) * 2, (1.0, 0.0), (2.0, 4.0), block=2)


class Lengths:
    """Episodes of which only the length is known."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def length(self, episode):
        return self.lengths[episode]


def rules(**changes):
    return RecordedProtocol(**{"name": "toy/v1", "pairs": 6, "horizon": 3} | changes)


def test_the_named_protocol_is_the_one_that_was_promised():
    found = find_protocol("recorded/action-error-v1")
    assert (found.pairs, found.horizon) == (200, 3) and found.with_pairs(5).pairs == 5
    with pytest.raises(InputError, match="horizon >= 1"):
        rules(horizon=0)


def test_pairs_are_all_starts_once_and_fewer_pairs_are_the_first_ones():
    store, block = Lengths(8, 99, 11), 2  # of 8 frames only frame 2 - 1 < 2, and of 11 the frames 2, 3, 4
    every = recorded_pairs(store, rules(pairs=3), block, [0, 2])
    assert sorted(map(tuple, every.tolist())) == [(2, 2), (2, 3), (2, 4)]
    assert torch.equal(recorded_pairs(store, rules(pairs=2), block, [0, 2]), every[:2])
    drawn = [recorded_pairs(store, rules(pairs=60, seed=seed), 1, [1]) for seed in (0, 1)]
    assert not torch.equal(*drawn)
    with pytest.raises(InputError, match="hold 3 starts with 2 steps before and 6 behind.*wants 6: .*--pairs"):
        recorded_pairs(store, rules(), block, [0, 2])


def test_errors_in_closed_form():
    recorded = torch.zeros(1, 3, 4)
    planned = torch.tensor([[[2.0, 0, 0, 4], [-2, 0, 0, -4], [0, 0, 0, 0], [50, 50, 50, 50]]])
    found = errors(planned, recorded, SPACE)
    # the first block is wrong by one deviation in two of its four numbers, as is the second; the fourth is beyond
    assert found["first"].tolist() == [0.5] and found["plan"].tolist() == pytest.approx([1 / 3])
    assert found["sum"].tolist() == pytest.approx([0.0], abs=1e-6)
    assert found["first_raw"].tolist() == [[1, 2]] and found["plan_raw"][0].tolist() == pytest.approx([2 / 3, 4 / 3])
    assert found["sum_raw"].tolist() == [[0, 0]]
    drifting = errors(recorded + torch.tensor([2.0, 0, 2, 0]), recorded, SPACE)
    assert drifting["sum"].tolist() == pytest.approx([3.0]) and drifting["sum_raw"].tolist() == [[12, 0]]


def test_what_a_plan_does_not_cover_is_not_scored():
    recorded = torch.randn(5, 3, 4)
    short, single = errors(recorded[:, :2], recorded, SPACE), errors(recorded[:, :1], recorded[:, :1], SPACE)
    assert set(short) == {"first", "first_cosine", "first_raw"} and short["first"].abs().max() == 0
    assert set(single) - set(short) == {"plan", "plan_raw"}


def test_floors_know_nothing_of_the_future():
    recorded, last = torch.randn(400, 3, 4), torch.randn(400, 2)
    floors = blind_plans(recorded, SPACE, 0, last)
    assert torch.equal(floors["mean_action"][7, 2], torch.tensor([1.0, 0, 1, 0]))
    assert torch.equal(floors["repeat_last"], last[:, None].repeat(1, 3, 2))
    chance = floors["random"]
    assert chance.abs().max() <= 9 and chance.std() == pytest.approx(9 / 3**0.5, rel=0.05)
    assert set(blind_plans(recorded, SPACE, 0)) == {"mean_action", "random"}


def report(offset=0.0, pairs=6, **changes):
    recorded = torch.randn(pairs, 3, 4, generator=torch.Generator().manual_seed(0))
    scores = errors(recorded + offset, recorded, SPACE)
    values = {name: [None if v != v else v for v in part.tolist()] for name, part in scores.items()}
    episode = [0, 0, 0, 1, 1, 2][:pairs]
    made = ActionReport("some", rules().to_dict(), 2, episode, list(range(pairs)), values, {"random": values}, "same")
    return replace(made, **changes)


def test_a_report_is_read_as_it_was_written(tmp_path):
    made = report(1.0)
    made.comparison = made.compare(report(0.5))
    made.save(tmp_path / "report.json")
    assert ActionReport.load(tmp_path / "report.json") == made
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["episodes"] == 3 and told["estimates"]["policy"]["plan_raw"][1]["value"] == pytest.approx(1.0)
    assert "6 of 3 episodes" in str(made) and "some, sum" in str(made)
    with pytest.raises(InputError, match="not a whole report"):
        Report.load(tmp_path / "report.json")


def test_intervals_are_over_episodes():
    made = report()
    made.errors["first"] = [0.0, 0.0, 0.0, 3.0, 3.0, 6.0]
    found = made.estimates()["first"]
    assert found.value == pytest.approx(3.0) and (found.low, found.high) == (0.0, 6.0)  # means of 0, 3 and 6
    made.errors["first"][5] = None
    assert made.estimates()["first"].value == pytest.approx(1.5)


def test_comparisons_are_paired_and_of_equal_pairs_only():
    found = report(1.0).compare(report(0.5)).differences["first"]
    # an offset of one is 0.5 and 0.25 deviations; every pair differs alike, so that nothing is uncertain
    assert found.value == pytest.approx(0.1875, abs=1e-5) and found.high - found.low < 1e-5
    for other in (report(pairs=5), report(pairs_digest="other"), report(protocol=rules(name="toy/v2").to_dict())):
        with pytest.raises(InputError, match="cannot be compared"):
            report().compare(other)
