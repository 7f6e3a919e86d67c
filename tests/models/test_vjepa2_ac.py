"""V-JEPA 2-AC's predictor: causal from frame to frame, so that a growing cache gives the numbers of a recompute."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.vjepa2_ac import PosePredictor

ACTION, POSE, CAMERA = 7, 7, 6


def predictor(camera=0, grid=(2, 3), heads=2, norm=True):
    torch.manual_seed(0)
    made = PosePredictor(10, 28, 2, heads, grid, 2.0, camera, norm)
    made.bind(ACTION, POSE + camera)
    for parameter in made.parameters():  # away from the gentle start, where a fault could hide
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def inputs(steps, camera=0, tokens=6, batch=2):
    draw = torch.Generator().manual_seed(1)
    shapes = ((tokens, 10), (ACTION,), (POSE + camera,))
    return [torch.randn(batch, steps, *shape, generator=draw) for shape in shapes]


@torch.no_grad()
@pytest.mark.parametrize("camera", [0, CAMERA])
def test_no_forecast_depends_on_a_later_frame(camera):
    made, given = predictor(camera), inputs(5, camera)
    p = made(*given)
    assert p.shape == given[0].shape
    for part in range(3):
        changed = [value.clone() for value in given]
        changed[part][:, 2] += 2
        moved = (made(*changed) - p).abs().amax((0, 3)) > 1e-5
        assert moved.all(1).tolist() == moved.any(1).tolist() == [False, False, True, True, True]


@torch.no_grad()
def test_the_camera_has_a_token_of_its_own():
    made, given = predictor(CAMERA), inputs(3, CAMERA)
    p = made(*given)
    given[2][:, 1, POSE:] += 2
    assert ((made(*given) - p).abs().amax((0, 2, 3)) > 1e-5).tolist() == [False, True, True]


@pytest.mark.parametrize("camera", [0, CAMERA])
@pytest.mark.parametrize("history", [1, 2, 4])
@pytest.mark.parametrize("grad", [False, True])
def test_the_cache_equals_a_full_recompute(camera, history, grad):
    # in float64, since random weights make a rollout of float32 multiply what rounding differs by
    made, (z, action, pose) = predictor(camera).double(), (part.double() for part in inputs(history, camera))
    copies, horizon = 3, 4
    _, plans, poses = (part.double() for part in inputs(horizon, camera, batch=2 * copies))
    with torch.set_grad_enabled(grad):
        cache = made.begin(z, action[:, :-1], pose[:, :-1]).expand(copies)
        seen, done, been = (part.repeat_interleave(copies, 0) for part in (z, action[:, :-1], pose[:, :-1]))
        for h in range(horizon):
            forecast, cache = made.step(cache, plans[:, h], poses[:, h])
            done, been = torch.cat([done, plans[:, h : h + 1]], 1), torch.cat([been, poses[:, h : h + 1]], 1)
            full = made(seen, done, been)[:, -1]
            assert (forecast - full).abs().max() < 1e-10
            seen = torch.cat([seen, full[:, None]], 1)
    assert cache.time == history - 1 + horizon


@torch.no_grad()
def test_a_step_leaves_the_cache_that_it_was_given():
    """Two futures can begin from one cache without a copy."""
    made, (z, action, pose) = predictor(), inputs(3)
    cache = made.begin(z, action[:, :2], pose[:, :2])
    first, _ = made.step(cache, action[:, 2], pose[:, 2])
    made.step(cache, action[:, 0], pose[:, 0])
    again, _ = made.step(cache, action[:, 2], pose[:, 2])
    assert torch.equal(first, again) and cache.time == 2


def test_the_gradient_through_the_cache_is_that_of_the_recompute():
    made, (z, action, pose) = predictor(), inputs(4)
    weight = torch.randn(2, 6, 10)

    def cached(z, action):
        cache = made.begin(z, action[:, :0], pose[:, :0])
        for t in range(4):
            forecast, cache = made.step(cache, action[:, t], pose[:, t])
        return forecast

    def recomputed(z, action):
        for t in range(4):
            z = torch.cat([z, made(z, action[:, : t + 1], pose[:, : t + 1])[:, -1:]], 1)
        return z[:, -1]

    gradients = []
    for rollout in (cached, recomputed):
        start, plan = z[:, :1].clone().requires_grad_(), action.clone().requires_grad_()
        (rollout(start, plan) * weight).sum().backward()
        gradients.append((start.grad, plan.grad))
    for mine, theirs in zip(*gradients):
        assert mine.any() and torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)


def test_mixed_precision_rolls_out():
    made, (z, action, pose) = predictor(), inputs(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = made.begin(z, action[:, :2], pose[:, :2])
        forecast, _ = made.step(cache, action[:, 2], pose[:, 2])
    forecast.float().square().sum().backward()
    assert forecast.isfinite().all() and made.project.weight.grad.any()


@torch.no_grad()
def test_patches_know_their_place():
    made, (z, action, pose) = predictor(), inputs(2)
    turned = made(z.flip(2), action, pose).flip(2)
    assert not torch.allclose(turned, made(z, action, pose), atol=1e-3)


def test_wrong_sizes_are_one_line():
    with pytest.raises(InputError, match="PosePredictor was given width 10, heads 4"):
        PosePredictor(width=10, heads=4, depth=1)
    with pytest.raises(InputError, match="proprioception of width 6"):
        predictor(CAMERA).bind(ACTION, CAMERA)
    with pytest.raises(InputError, match="proprioception of width 0"):
        predictor().bind(ACTION, 0)
    with pytest.raises(AssertionError, match="3 latents"):
        predictor().begin(*inputs(3))
