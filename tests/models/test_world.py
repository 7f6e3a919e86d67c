"""The world model: its forecasts agree with one another, and a window becomes the prediction that objectives score."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.encoders import ConvNet, ViT
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import EMA, Frozen, Online
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs, World
from jepa.testing import check_world

SPECS = Specs(ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.5, 2.0), block=2), ObservationSpec(16, 16))


def world(kind=WorldModel, grid=False, target=None, window=3, **options):
    torch.manual_seed(0)
    encoder = ViT(8, 16, 8, 16, 1, 2, "none") if grid else ConvNet(8, 16, (8, 8, 8), 8)
    made = kind(encoder, ActionPredictor(8, 16, 2, 2, window, 4 if grid else 1), target or EMA(), **options)
    made.bind(SPECS)
    for name, parameter in made.predictor.named_parameters():
        if "modulation" in name or "project" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def sample(steps=5):
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (2, steps, 3, 16, 16), dtype=torch.uint8, generator=draw)
    return Sample(video=video, action=SPECS.action.denormalise(torch.randn(2, steps - 1, 4, generator=draw)))


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("grid", [False, True])
def test_contract(grid, window):
    check_world(world(grid=grid, window=window))


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_window_becomes_a_prediction(grid, steps):
    made, window = world(grid=grid, rollout_steps=steps), sample()
    prediction = made(window)
    z, tokens = made.encode(window), 4 if grid else 1
    assert prediction.z.shape == prediction.h.shape == (2, 5, tokens, 8)
    assert torch.equal(prediction.z, z)
    assert torch.allclose(prediction.action, SPECS.action.normalise(window.action))
    assert torch.allclose(prediction.p, made.predict(z[:, :-1], window.action))
    assert prediction.rollout.shape == (2, steps, tokens, 8)
    # the first open-loop step starts from the same latents as the teacher-forced one, the later ones do not
    assert torch.allclose(prediction.rollout[:, 0], prediction.p[:, -steps], atol=1e-5)
    if steps > 1:
        assert not torch.allclose(prediction.rollout[:, 1:], prediction.p[:, 1 - steps :], atol=1e-3)


def test_forecasts_are_optional():
    assert world(rollout_steps=0)(sample()).rollout is None
    assert world(rollout_steps=2, forced=False)(sample()).p is None


def test_the_future_stays_in_the_future():
    """Perturb a frame and an action: what was encoded and forecast before does not move."""
    made, window = world().eval(), sample()
    with torch.no_grad():
        before = made(window)
        window.video[:, 3] = 255 - window.video[:, 3]
        window.action[:, 3] += 1
        after = made(window)
    for name, moved in (("z", [3]), ("h", [3]), ("p", [3])):
        steps = (getattr(after, name) - getattr(before, name)).abs().amax((0, 2, 3)) > 1e-5
        assert steps.nonzero().flatten().tolist() == moved, name


def test_gradients_reach_the_encoder_through_a_rollout():
    made = world(rollout_steps=4, forced=False, target=EMA())
    prediction = made(sample())
    (prediction.rollout[:, -1] * torch.randn(2, 1, 8)).sum().backward()
    assert made.encoder.head[0].weight.grad.any()
    assert made.predictor.condition[0].weight.grad.any()
    assert all(parameter.grad is None for parameter in made.target.parameters())


@pytest.mark.parametrize(("target", "flows"), [(EMA, False), (Frozen, False), (Online, True)])
def test_gradients_of_the_target(target, flows):
    assert world(target=target())(sample()).h.requires_grad == flows


def test_parts_that_do_not_fit_are_one_line():
    encoder = ConvNet(8, 16, (8, 8, 8), 8)
    with pytest.raises(InputError, match="1 tokens of 8 dimensions.*dim=12"):
        WorldModel(encoder, ActionPredictor(12, 16, 1, 2), EMA())
    with pytest.raises(InputError, match="tokens=4"):
        WorldModel(encoder, ActionPredictor(8, 16, 1, 2, tokens=4), EMA())
    with pytest.raises(InputError, match="at least one"):
        WorldModel(encoder, ActionPredictor(8, 16, 1, 2), EMA(), rollout_steps=0, forced=False)
    with pytest.raises(InputError, match="32x16 pixels.*16x16"):
        made = WorldModel(encoder, ActionPredictor(8, 16, 1, 2), EMA())
        made.bind(Specs(SPECS.action, ObservationSpec(32, 16)))


def test_a_rollout_longer_than_the_window_of_data_is_one_line():
    with pytest.raises(InputError, match="5 steps needs more frames"):
        world(rollout_steps=5)(sample())


def test_only_a_bound_world_is_a_world():
    encoder = ConvNet(8, 16, (8, 8, 8), 8)
    assert not isinstance(WorldModel(encoder, ActionPredictor(8, 16, 1, 2), EMA()), World)
    assert isinstance(world(), World)


class Twice(WorldModel):
    """Normalises the plan before it is normalised."""

    def rollout(self, z, action, past=None):
        return super().rollout(z, self.specs.action.normalise(action), past)

    def predict(self, z, action):
        raw = torch.cat([action[:, :2], self.specs.action.normalise(action[:, 2:])], 1)
        return super().predict(z, raw)


class Mixed(WorldModel):
    """Candidates see one another."""

    def rollout(self, z, action, past=None):
        return super().rollout(z, action - 0.5 * action.mean(1, keepdim=True), past)


@pytest.mark.parametrize(("broken", "fault"), [(Twice, "normalised exactly once"), (Mixed, "when it is alone")])
def test_the_contract_can_fail(broken, fault):
    with pytest.raises(AssertionError, match=fault):
        check_world(world(broken))
