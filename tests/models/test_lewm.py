"""LeWM's parts: the window is computed again where a cache could not be exact, and the contracts hold."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.lewm import ClassTokenViT, WindowPredictor
from jepa.models.targets import Online
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.testing import check_encoder, check_predictor, check_world

ACTION = 4
SPECS = Specs(ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.5, 2.0), block=2), ObservationSpec(16, 16))


def awaken(module):
    """Away from the closed gates and the identity of batch norm, where a fault could hide."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if "modulation" in name:
            torch.nn.init.normal_(value, std=0.3)
        if name.endswith("running_mean"):
            torch.nn.init.normal_(value, std=0.3)
        if name.endswith("running_var"):
            torch.nn.init.uniform_(value, 0.5, 2)
    return module


def predictor(window=3, width=12, smooth=None):
    torch.manual_seed(0)
    made = WindowPredictor(12, width, 2, 2, 8, window, 24, smooth, 20)
    made.bind(ACTION)
    return awaken(made).eval()


def world():
    torch.manual_seed(0)
    encoder = ClassTokenViT(12, 16, 8, 16, 2, 2, hidden=20)
    made = WorldModel(encoder, WindowPredictor(12, 12, 2, 2, 8, 3, 24, projector_hidden=20), Online())
    made.bind(SPECS)
    return awaken(made)


@pytest.mark.parametrize("norm", [True, False])
def test_encoder_contract(norm):
    torch.manual_seed(0)
    check_encoder(awaken(ClassTokenViT(12, 16, 8, 16, 2, 2, hidden=20, norm=norm)))


@pytest.mark.parametrize(("window", "width", "smooth"), [(1, 12, None), (3, 12, None), (3, 20, 7), (5, 8, 2)])
def test_predictor_contract(window, width, smooth):
    check_predictor(predictor(window, width, smooth), ACTION)


def test_world_contract():
    check_world(world())


@torch.no_grad()
def test_the_window_is_rebased():
    """Each forecast is the last of one pass over the window that ends with its frame, positions counted from there."""
    made = predictor(window=3)
    z, action = torch.randn(2, 8, 1, 12), torch.randn(2, 8, ACTION)
    p = made(z, action)
    assert (made(z[:, :3], action[:, :3]) - p[:, :3]).abs().max() < 1e-6
    for t in range(2, 8):
        alone = made(z[:, t - 2 : t + 1], action[:, t - 2 : t + 1])
        assert (alone[:, -1] - p[:, t]).abs().max() < 1e-6
    # what the same frames contribute depends on where the window begins: keys and values could not be kept
    assert not torch.allclose(made(z[:, 1:3], action[:, 1:3])[:, -1], p[:, 2], atol=1e-3)


@torch.no_grad()
def test_the_window_bounds_what_is_seen_and_kept():
    made = predictor(window=3)
    z, action = torch.randn(1, 8, 1, 12), torch.randn(1, 8, ACTION)
    p = made(z, action)
    z[:, 2] += torch.linspace(-3, 3, 12)
    moved = (made(z, action) - p).abs().amax((0, 2, 3)) > 1e-6
    assert moved.tolist() == [2 <= t <= 4 for t in range(8)]
    cache = made.begin(z, action[:, :7])
    for _ in range(4):
        _, cache = made.step(cache, action[:, 0])
        assert cache.latents.shape[1] == 3 and cache.conditions.shape[1] == 2 and not cache.keys


@torch.no_grad()
def test_keys_and_values_serve_until_the_window_moves():
    made = predictor(window=3)
    z, action = torch.randn(2, 2, 1, 12), torch.randn(2, 5, ACTION)
    cache = made.begin(z, action[:, :1])
    held = []
    for t in range(1, 4):
        held.append(len(cache.keys) and cache.keys[0].shape[2])
        forecast, after = made.step(cache, action[:, t])
        again, _ = made.step(cache, action[:, t])
        assert torch.equal(forecast, again), "a step changed the cache that it was given"
        cache = after
    assert held == [1, 2, 0]


def test_mixed_precision_rolls_out():
    made = predictor()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = made.begin(torch.randn(2, 2, 1, 12), torch.randn(2, 1, ACTION))
        for _ in range(3):
            forecast, cache = made.step(cache, torch.randn(2, ACTION))
    forecast.float().square().sum().backward()
    assert forecast.isfinite().all() and made.position.grad.any()


def test_the_gates_begin_closed():
    torch.manual_seed(0)
    made = WindowPredictor(12, 12, 2, 2, 8, 3, 24, projector_hidden=20).eval()
    made.bind(ACTION)
    z = torch.randn(2, 3, 1, 12)
    assert torch.equal(made(z, torch.randn(2, 3, ACTION)), made(z, torch.randn(2, 3, ACTION)))


def test_gradients_reach_the_encoder_from_both_sides():
    made = world().train()
    draw = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8, generator=draw)
    prediction = made(Sample(video=video, action=torch.randn(2, 3, ACTION, generator=draw)))
    for side in (prediction.p, prediction.h):
        made.zero_grad()
        (side * torch.randn(side.shape, generator=draw)).sum().backward(retain_graph=True)
        assert all(given.grad is not None and given.grad.any() for given in made.encoder.blocks.parameters())


def test_wrong_sizes_are_one_line():
    for kind, given in ((ClassTokenViT, {"size": 65}), (ClassTokenViT, {"heads": 5}), (WindowPredictor, {"window": 0})):
        with pytest.raises(InputError, match=f"{kind.__name__} was given") as caught:
            kind(**given)
        assert "\n" not in str(caught.value)
    with pytest.raises(AssertionError, match="N=1 tokens per frame, not 4"):
        predictor()(torch.zeros(1, 2, 4, 12), torch.zeros(1, 2, ACTION))
