"""The cache is the model: one new frame per step gives the numbers of a full recompute."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.predictors import ActionPredictor
from jepa.testing import check_predictor

ACTION = 3
CASES = [  # window, depth, heads, tokens
    (1, 2, 2, 1),
    (2, 1, 1, 1),
    (3, 2, 4, 4),
    (5, 3, 2, 4),
    (8, 2, 4, 1),
]


def predictor(window=3, depth=2, heads=2, tokens=1, norm=True, seed=0):
    torch.manual_seed(seed)
    made = ActionPredictor(8, 16, depth, heads, window, tokens, norm=norm)
    made.bind(ACTION)
    for name, parameter in made.named_parameters():  # away from the gentle start, where a fault could hide
        if "modulation" in name or "project" in name:
            torch.nn.init.normal_(parameter, std=0.3 if norm else 0.1)
    return made


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("window", "depth", "heads", "tokens"), CASES)
def test_contract(window, depth, heads, tokens, norm):
    check_predictor(predictor(window, depth, heads, tokens, norm), ACTION)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("history", [1, 2, 4, 5, 23])
@pytest.mark.parametrize("copies", [1, 2, 7])
@pytest.mark.parametrize("grad", [False, True])
def test_ring_cache_equals_full_recompute(tokens, history, copies, grad):
    made = predictor(window=4, depth=3, tokens=tokens)
    horizon, rows = 11, 2 * copies
    with torch.set_grad_enabled(grad):
        z, past = torch.randn(2, history, tokens, 8), torch.randn(2, history - 1, ACTION)
        plans = torch.randn(rows, horizon, ACTION)
        cache = made.begin(z, past).expand(copies)
        seen, done = z.repeat_interleave(copies, 0), past.repeat_interleave(copies, 0)
        for h in range(horizon):
            forecast, cache = made.step(cache, plans[:, h])
            done = torch.cat([done, plans[:, h : h + 1]], 1)
            assert (made(seen, done)[:, -1] - forecast).abs().max() < 1e-5
            seen = torch.cat([seen, forecast[:, None]], 1)
    assert cache.time == history - 1 + horizon
    assert all(ring.shape == (rows, 2, 4, tokens, 8) for ring in (*cache.keys, *cache.values))


def test_the_gradient_through_the_cache_is_that_of_the_recompute():
    made = predictor(window=3)
    start, plan = torch.randn(2, 1, 1, 8), torch.randn(2, 6, ACTION)
    weight = torch.randn(2, 1, 8)

    def cached(z, action):
        cache = made.begin(z, action[:, :0])
        for t in range(6):
            forecast, cache = made.step(cache, action[:, t])
        return forecast

    def recomputed(z, action):
        for t in range(6):
            z = torch.cat([z, made(z, action[:, : t + 1])[:, -1:]], 1)
        return z[:, -1]

    gradients = []
    for rollout in (cached, recomputed):
        z, action = start.clone().requires_grad_(), plan.clone().requires_grad_()
        made.zero_grad()
        (rollout(z, action) * weight).sum().backward()
        gradients.append([z.grad, action.grad, *(p.grad for p in made.parameters())])
    for mine, theirs in zip(*gradients):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_with_and_without_gradients_are_the_same_numbers():
    made, z, action = predictor(), torch.randn(1, 4, 1, 8), torch.randn(1, 9, ACTION)

    def rollout():
        cache, forecasts = made.begin(z, action[:, :3]), []
        for t in range(3, 9):
            forecast, cache = made.step(cache, action[:, t])
            forecasts.append(forecast)
        return torch.stack(forecasts)

    with torch.no_grad():
        quiet = rollout()
    assert torch.allclose(rollout(), quiet, atol=1e-6)


@torch.no_grad()
def test_expand_leaves_the_past_untouched():
    made = predictor()
    cache = made.begin(torch.randn(2, 3, 1, 8), torch.randn(2, 2, ACTION))
    before = [ring.clone() for ring in (cache.pending, *cache.keys, *cache.values)]
    future = cache.expand(1)
    for _ in range(5):
        _, future = made.step(future, torch.randn(2, ACTION))
    assert all(map(torch.equal, before, (cache.pending, *cache.keys, *cache.values)))
    assert cache.time == 2


@torch.no_grad()
@pytest.mark.parametrize("shift", [1, 4, 100])
def test_shifting_all_times_changes_nothing(shift):
    """Time is relative: a cache that has seen frames that fell out of the window forecasts as a fresh one."""
    made = predictor(window=4, depth=1)
    z, action = torch.randn(2, 6, 1, 8), torch.randn(2, 6, ACTION)
    early = torch.randn(2, shift, 1, 8), torch.randn(2, shift, ACTION)
    late = made(torch.cat([early[0], z], 1), torch.cat([early[1], action], 1))[:, shift:]
    # depth 1: from the fourth frame on, the window holds frames of z alone
    assert torch.allclose(late[:, 3:], made(z, action)[:, 3:], atol=1e-5)
    cache = made.begin(z[:, :1], action[:, :0])
    cache.time = shift * 4  # a multiple of the window keeps the slots
    for t in range(3):
        cache.pending = z[:, t]
        made.step(cache, action[:, t])
        cache.time += 1
    assert cache.time == shift * 4 + 3


@torch.no_grad()
def test_the_window_bounds_what_is_seen():
    """A block sees `window` frames, so that `depth` blocks see depth * (window - 1) frames back, and no more."""
    made = predictor(window=3, depth=2)
    z, action = torch.randn(1, 12, 1, 8), torch.randn(1, 12, ACTION)
    p = made(z, action)
    z[:, 2] += 5
    moved = (made(z, action) - p).abs().amax((0, 2, 3)) > 1e-6
    assert moved.tolist() == [2 <= t <= 2 + 2 * 2 for t in range(12)]


def test_tokens_of_a_frame_see_each_other_and_know_their_place():
    made = predictor(tokens=4)
    z, action = torch.randn(1, 2, 4, 8), torch.randn(1, 2, ACTION)
    p = made(z, action)
    changed = z.clone()
    changed[:, 0, 0] += 3
    assert ((made(changed, action) - p)[0, 0].abs().amax(-1) > 1e-5).all()
    turned = made(z.flip(2), action).flip(2)
    assert not torch.allclose(turned, p, atol=1e-4)


def test_wrong_sizes_are_one_line():
    for given in ({"window": 0}, {"width": 10, "heads": 4}, {"width": 12, "heads": 4}):
        with pytest.raises(InputError, match="ActionPredictor was given") as caught:
            ActionPredictor(**given)
        assert "\n" not in str(caught.value)


def test_a_cache_wants_the_actions_between_its_latents():
    with pytest.raises(AssertionError, match="want 2 actions"):
        predictor().begin(torch.randn(1, 3, 1, 8), torch.randn(1, 3, ACTION))


def test_mixed_precision_rolls_out():
    made = predictor()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = made.begin(torch.randn(2, 2, 1, 8), torch.randn(2, 1, ACTION))
        forecast, _ = made.step(cache, torch.randn(2, ACTION))
    assert forecast.isfinite().all()
    forecast.float().square().sum().backward()


class Peeking(ActionPredictor):
    """Sees the future: every forecast is moved by the mean of all latents."""

    def forward(self, z, action):
        return super().forward(z, action) + z.mean(1, keepdim=True)


class Forgetful(ActionPredictor):
    """Its cache loses count of time."""

    def step(self, cache, action):
        forecast, after = super().step(cache, action)
        after.time = min(after.time, 1)
        return forecast, after


@pytest.mark.parametrize(
    ("broken", "fault"), [(Peeking, "changed earlier"), (Forgetful, "differs from a full recompute")]
)
def test_the_contract_can_fail(broken, fault):
    torch.manual_seed(0)
    made = broken(8, 16, 2, 2, 3)
    made.bind(ACTION)
    with pytest.raises(AssertionError, match=fault):
        check_predictor(made, ACTION)
