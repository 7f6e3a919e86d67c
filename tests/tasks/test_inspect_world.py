"""``jepa inspect world``: of a world that is right, of one that does not look at actions, and of a checkpoint."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jepa.errors import InputError
from jepa.models.encoders import ConvNet
from jepa.models.ensemble import EnsembleWorld
from jepa.models.pose_world import PoseWorld, StillViT
from jepa.models.poses import reckon
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import Frozen, Online
from jepa.models.vjepa2_ac import PosePredictor
from jepa.planning import CEM, GoalLatent, Risk
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Sample, Specs
from jepa.tasks import world_checks as checks
from jepa.tasks.world_checks import HeldOut
from jepa.tasks.world_windows import Watch

HORIZON, LENGTH = 4, 13


class Toy(nn.Module):
    """A dot whose colour (x, y, 250) is the latent; x and y move by the action, if the world looks at it."""

    def __init__(self, blind: bool = False, history: int = 1) -> None:
        super().__init__()
        space = ActionSpec((-9.0,) * 2, (9.0,) * 2, (0.0,) * 2, (5.0,) * 2)
        self.specs = Specs(space, ObservationSpec(8, 8), EvalSpec(history=history))
        self.blind = blind

    def encode(self, sample):
        return (sample.video[..., [5, 6, 7], [5, 6, 7]].float().sum(-1) - 80).unsqueeze(2)

    def targets(self, sample, z):
        return z

    def rollout(self, z, action, past=None):
        assert (past is None) == (z.shape[1] == 1) and (past is None or past.shape[1] == z.shape[1] - 1)
        move = torch.nn.functional.pad(action, (0, 1)).cumsum(2)
        return (z[:, -1:, None] + (0 if self.blind else 1) * move.unsqueeze(3)).expand(*move.shape[:3], 1, 3)


class Store:
    """Episodes of the dot, which also goes from pixel to pixel, in memory."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(count)
        self.action = torch.from_numpy(random.integers(-9, 10, (count, LENGTH, 2))).float()
        place = 120 + torch.cat([torch.zeros(count, 1, 2), self.action[:, :-1].cumsum(1)], dim=1)
        self.video = torch.full((count, LENGTH, 3, 8, 8), 40, dtype=torch.uint8)
        colour = torch.cat([place, torch.full((count, LENGTH, 1), 250.0)], dim=2)
        for frame in range(LENGTH):
            self.video[:, frame, :, 5 + frame % 3, 5 + frame % 3] = colour[:, frame].to(torch.uint8)

    def __len__(self):
        return len(self.video)

    def length(self, episode):
        return LENGTH

    def read(self, episode, frames, columns=None):
        return Sample(video=self.video[episode, frames], action=self.action[episode, frames])

    def windows(self, frames: int) -> Sample:
        starts = [(episode, start) for episode in range(len(self)) for start in (0, LENGTH - frames)]
        return Sample(
            video=torch.stack([self.video[e, s : s + frames] for e, s in starts]),
            action=torch.stack([self.action[e, s : s + frames - 1] for e, s in starts]),
            index=torch.tensor(starts),
        )


@pytest.fixture(params=[1, 3], ids=["history 1", "history 3"])
def history(request) -> int:
    return request.param


@pytest.fixture
def held(history) -> HeldOut:
    test, calm = Store(12), Store(15)
    return HeldOut(test, test.windows(history + HORIZON), calm.windows(history + 1), 1)


def watch(history: int, blind: bool = False) -> Watch:
    return Watch(Toy(blind, history), history, batch=5, chunk=4)


def test_a_world_that_is_right_is_never_wrong(held, history):
    watches = {"model": watch(history), "untrained": watch(history, blind=True)}
    rollout, ranking, units = checks.forecasts(watches, held, 7, 0)
    assert units["model"] > 0 and units["model"] == units["untrained"]
    for step in range(HORIZON):
        assert rollout["model"]["error"][step].value == 0 and rollout["model"]["gain"][step].value == pytest.approx(1)
        assert rollout["model"]["copy"][step].value > 0 == rollout["untrained"]["gain"][step].value
        for among in ("recorded", "random"):
            mine, blind = (ranking[name][among]["top1"][step].value for name in watches)
            assert blind == pytest.approx(1 / 8) and (mine > 0.9 if step else mine > 0.7)  # few moves are alike


def test_surprise_tells_violations(held, history):
    found = checks.surprises({"model": watch(history), "untrained": watch(history, blind=True)}, held, 0.05, 0)
    for kind in ("teleported", "recoloured"):
        part = found["model"]["violations"][kind]
        assert part["auc"].value > 0.97 and part["detected"].value > 0.95
        assert found["untrained"]["violations"][kind]["auc"].value < part["auc"].value or kind == "recoloured"
    assert found["model"]["false_alarms"].value == 0 and found["untrained"]["false_alarms"].value < 0.2
    curve = found["model"]["curves"]["teleported"]
    assert [part.value for part in curve[: found["violated_step"]]] == [0, 0] and curve[2].value > 10


def test_violations_begin_at_their_frame_and_leave_what_was_given(held, history):
    kept, frame = held.test.video.clone(), history + 2
    for windows in checks.violations(held, frame).values():
        assert torch.equal(windows.video[:, :frame], kept[:, :frame]) and torch.equal(windows.action, held.test.action)
        assert not torch.equal(windows.video[:, frame], kept[:, frame])
    assert torch.equal(held.test.video, kept)


def test_a_plan_of_a_world_that_is_right_moves_as_was_recorded(held, history):
    model = watch(history)
    plans = checks.planned(model, CEM(min_std=0.01, first_iterations=20), GoalLatent(), held, 0)
    assert plans.shape == (24, HORIZON, 2) and torch.equal(model.world.specs.action.clip(plans), plans)
    found = checks.actions(plans, model, held, 0)
    assert found["plan"]["mean"].value < 0.03 and found["plan"]["mean_cosine"].value > 0.95
    assert found["plan"]["mean"].high < found["mean_action"]["mean"].low < found["random"]["mean"].value
    assert found["mean_action"]["first_cosine"] is None
    assert torch.equal(plans, checks.planned(model, CEM(min_std=0.01, first_iterations=20), GoalLatent(), held, 0))


def test_the_valley_of_a_landscape_lies_where_the_recorded_action_is(held, history):
    for part in checks.landscapes(watch(history), GoalLatent(), held, [0, 5, 9], [(0, 1)], 19):
        row, column = np.unravel_index(part.cost.argmin(), part.cost.shape)
        assert (part.x[column], part.y[row]) == pytest.approx(part.recorded, abs=0.51)
    one_way, other = (checks.landscapes(watch(history), GoalLatent(), held, [3], [d], 7)[0] for d in ((0, 1), (1, 0)))
    assert np.allclose(one_way.cost, other.cost.T)


def robot(members: bool = False):
    """A world that sees poses, or an ensemble, for actions that are differences of poses."""
    torch.manual_seed(0)
    space = ActionSpec((-0.1,) * 7, (0.1,) * 7, (0.0,) * 7, (0.05,) * 7)
    specs = Specs(space, ObservationSpec(32, 32, proprio_mean=(0.0,) * 7, proprio_std=(1.0,) * 7), EvalSpec(history=2))
    if members:
        predictors = [ActionPredictor(8, 16, 1, 2, window=4) for _ in range(3)]
        world = EnsembleWorld(ConvNet(8, 32), predictors, Online())
    else:
        encoder = StillViT(32, 2, 2, 16, 12, 1, 2, 2.0, "rotary_tiled", norm=True)
        world = PoseWorld(encoder, PosePredictor(12, 16, 2, 2, (2, 2), 2.0), Frozen())
    world.bind(specs)
    for parameter in world.parameters():
        if parameter.ndim > 1 and not parameter.any():  # of layers that begin at zero
            nn.init.normal_(parameter, std=0.3)
    return world.eval().requires_grad_(False)


def recording() -> Sample:
    draw = torch.Generator().manual_seed(1)
    action = 0.05 * torch.randn(6, 4, 7, generator=draw).clamp(-2, 2)
    pose = reckon(torch.rand(6, 7, generator=draw), torch.cat([action, action[:, :1]], 1))
    video = torch.randint(0, 256, (6, 5, 3, 32, 32), dtype=torch.uint8, generator=draw)
    index = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)], dim=1)
    return Sample(video=video, action=action, proprio=pose, index=index)


@pytest.mark.parametrize("members", [False, True], ids=["poses", "ensemble"])
def test_worlds_that_see_poses_and_ensembles_are_inspected(members):
    model, test = Watch(robot(members), 2, batch=4, chunk=3), recording()
    held = HeldOut(None, test, test, 1)
    rollout, ranking, _ = checks.forecasts({"model": model}, held, 4, 0)
    assert all(part.value > 0 for part in rollout["model"]["error"]) and len(ranking["model"]["random"]["top1"]) == 3
    first = replace(test, video=test.video[:, :3], action=test.action[:, :2], proprio=test.proprio[:, :3])
    single = model.errors(first, first.action[:, None, 1:])
    assert torch.allclose(model.surprise(test)[:, 0], single.plans[:, 0, 0] * single.unit, rtol=1e-4)
    cost = Risk(GoalLatent()) if members else GoalLatent()
    plans = checks.planned(model, CEM(16, 4, first_iterations=2), cost, held, 0)
    assert plans.shape == (6, 3, 7) and torch.equal(model.world.specs.action.clip(plans), plans)
    assert len(checks.landscapes(model, cost, held, [0], checks.pairs(7), 3)) == 6
    if not members:
        with pytest.raises(InputError, match="needs proprio"):
            model.surprise(replace(test, proprio=None))


def test_inspect_world(jepa, workshop, tmp_path):
    checkpoint, data = workshop.checkpoint("two_rooms"), workshop.data("two_rooms")
    small = ("--horizon=4", "--rate=0.1", "--parts=[0.5, 0.25, 0.25]", "--points=3", "--candidates=3", "--windows=9")
    ran = jepa("inspect", "world", checkpoint, f"--data={data}", f"--out={tmp_path}", *small)
    assert ran.code == 0, ran.err
    told = json.loads((tmp_path / "world.json").read_text())
    assert told["windows"] == 9 and told["episodes"] == 3 and told["frame_skip"] == 3
    assert len(told["rollout"]["untrained"]["error"]) == 4 and told["ranking"]["chance"]["top1"] == 0.25
    assert "top-1 among recorded" in ran.out and "action error, plan" in ran.out and "teleported" in ran.out
    for svg in ("rollout", "ranking", "surprise_model", "surprise_untrained", "landscapes"):
        ElementTree.parse(tmp_path / f"{svg}.svg")
    assert Image.open(tmp_path / "storyboards.png").width > 400
    page = (tmp_path / "world.html").read_text()
    assert page.count("<svg") == 5 and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--horizon=1",), "horizon=1"),
        (("--device=abacus",), "device=abacus cannot be used"),
        (("--horizon=4", "--cost=jepa.planning.Disagreement"), "is one world"),
        (("--windows=0",), "windows=0"),
        (("--horizon=4", "--windows=2"), "from 20 steps: expected 99 or more"),
        (("--parts=[1.0, 0.0, 0.0]",), "expected three parts above 0"),
        (("--horizon=40",), "no window of 41 frames"),
        (("--horizon=4", "--rate=0.5", "--dimensions=[[0, 5]]"), "dimensions 0, 5"),
    ],
)
def test_inspect_world_refuses(flags, complaint, jepa, workshop, tmp_path):
    given = (workshop.checkpoint("two_rooms"), f"--data={workshop.data('two_rooms')}", f"--out={tmp_path / 'out'}")
    told = jepa("inspect", "world", *given, *flags).complaint()
    assert complaint in told and not (tmp_path / "out").exists()


def test_inspect_world_wants_episodes_of_its_kind(jepa, workshop, tmp_path):
    given = (workshop.checkpoint("two_rooms"), f"--out={tmp_path}")
    assert "disagree" in jepa("inspect", "world", *given, f"--data={workshop.data('reacher')}").complaint()
    assert "no checkpoint" in jepa("inspect", "world", "none.ckpt", "--data=none.h5", f"--out={tmp_path}").complaint()
