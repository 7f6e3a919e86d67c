"""The world of V-JEPA 2-AC: frames encoded alone, poses from the sample in training and reckoned in plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jepa.errors import InputError
from jepa.models.pose_world import PoseWorld, StillViT
from jepa.models.poses import reckon
from jepa.models.targets import Frozen
from jepa.models.vjepa2_ac import PosePredictor
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.testing import check_encoder

SPACE = ActionSpec((-1.0,) * 7, (1.0,) * 7, (0.1,) * 7, (0.5,) * 7)


def specs(camera):
    width = 7 + camera
    return Specs(SPACE, ObservationSpec(16, 16, proprio_mean=(0.2,) * width, proprio_std=(2.0,) * width))


def encoder():
    torch.manual_seed(0)
    return StillViT(16, 2, 2, 8, 12, 1, 2, 2.0, "rotary_tiled", norm=True)


def world(camera=0, **options):
    made = PoseWorld(encoder(), PosePredictor(12, 16, 2, 2, (2, 2), 2.0, camera), Frozen(), **options)
    made.bind(specs(camera))
    for parameter in made.predictor.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def sample(steps=5, camera=0):
    """Poses that follow from the actions, under a camera that stays."""
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (2, steps, 3, 16, 16), dtype=torch.uint8, generator=draw)
    action = 0.1 * torch.randn(2, steps - 1, 7, generator=draw)
    start = torch.rand(2, 7, generator=draw)
    pose = reckon(start, torch.cat([action, action[:, :1]], 1))
    seen = torch.randn(2, 1, camera, generator=draw).expand(-1, steps, -1)
    return Sample(video=video, action=action, proprio=torch.cat([pose, seen], -1))


def test_frames_are_encoded_alone():
    check_encoder(encoder())


@pytest.mark.parametrize("camera", [0, 6])
def test_a_window_becomes_a_prediction(camera):
    made, window = world(camera), sample(camera=camera)
    prediction = made(window)
    assert prediction.p.shape == (2, 4, 4, 12) and prediction.rollout.shape == (2, 2, 4, 12)
    # the first open-loop step starts from the same latents as the teacher-forced one, the second does not
    assert torch.allclose(prediction.rollout[:, 0], prediction.p[:, -2], atol=1e-5)
    assert not torch.allclose(prediction.rollout[:, 1], prediction.p[:, -1], atol=1e-3)
    assert prediction.p.requires_grad and not prediction.h.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("camera", [0, 6])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_reckoned_poses_are_those_of_the_episode(camera, steps):
    made, window = world(camera, rollout_steps=steps), sample(camera=camera)
    context = 5 - steps
    z, plan = made.encode(window)[:, :context], window.action[:, context - 1 :]
    past, seen = window.action[:, : context - 1], window.proprio[:, :context]
    both = torch.stack([plan, plan + 0.2], dim=1)
    rollout = made.rollout(z, both, past, seen)
    assert torch.allclose(rollout[:, 0], made(window).rollout, atol=1e-5)
    alone = made.rollout(z, both[:, 1:], past, seen)
    assert torch.allclose(rollout[:, 1:], alone, atol=1e-5) and not torch.allclose(alone, rollout[:, :1], atol=1e-3)
    if context == 1:
        assert torch.allclose(made.rollout(z, both, None, seen), rollout, atol=1e-6)


def test_what_is_missing_is_one_line():
    made, window = world(), sample()
    blind = replace(window, proprio=None)
    for ask in (lambda: made(blind), lambda: made.predict(made.encode(window), window.action)):
        with pytest.raises(InputError, match="needs proprio"):
            ask()
    z, plan = made.encode(window)[:, :1], torch.zeros(2, 3, 4, 7)
    with pytest.raises(InputError, match="poses of width 0"):
        made.rollout(z, plan)
    with pytest.raises(InputError, match="actions of width 14"):
        made.rollout(z, torch.zeros(2, 3, 4, 14), None, window.proprio[:, :1])
    with pytest.raises(InputError, match="proprioception of width 0"):
        made.bind(Specs(SPACE, ObservationSpec(16, 16)))
