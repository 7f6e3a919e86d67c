"""DINO-WM's predictor: the published sliding window, computed again for every step, and never a ring."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.dino_wm import PatchWindowPredictor
from jepa.models.encoders import ViT
from jepa.models.proprio_world import ProprioWorld
from jepa.models.targets import Frozen
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.testing import check_predictor, check_world

ACTION, DIM, TOKENS, CHANNELS = 4, 11, 3, 5


def predictor(window=3, tokens=TOKENS, depth=2):
    torch.manual_seed(0)
    made = PatchWindowPredictor(DIM, tokens, CHANNELS, depth, 2, 6, window, 24)
    made.bind(ACTION)
    for name, value in made.named_parameters():
        if "norm" in name or ".mlp.0." in name:
            torch.nn.init.normal_(value, 1.0, 0.3)  # no norm is the identity, where one too many could hide
    return made.eval()


def inputs(frames, tokens=TOKENS, rows=2):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, frames, tokens, DIM, generator=draw), torch.randn(rows, frames, ACTION, generator=draw)


def published(made, z, action):
    """One pass over at most a window, token by token from the description: what follows its last frame [B,N,D]."""
    frames, tokens = z.shape[1:3]
    x = torch.cat([z, made.condition(action).unsqueeze(2).repeat(1, 1, tokens, 1)], dim=-1).flatten(1, 2)
    x = x + made.position[:, : frames * tokens]
    frame = [i // tokens for i in range(frames * tokens)]
    hidden = torch.tensor([[-torch.inf if theirs > mine else 0.0 for theirs in frame] for mine in frame])
    for block in made.blocks:
        q, k, v = block.qkv(block.attn_norm(x)).chunk(3, dim=-1)
        heads = []
        for part in zip(*(whole.split(block.head, dim=-1) for whole in (q, k, v))):
            weight = (part[0] @ part[1].mT / block.head**0.5 + hidden).softmax(-1)
            heads.append(weight @ part[2])
        x = x + block.proj(torch.cat(heads, dim=-1))
        x = x + block.mlp(x)
    x = F.layer_norm(x, x.shape[-1:], made.final_norm.weight, made.final_norm.bias)
    return x[:, -tokens:, : z.shape[-1]]


@pytest.mark.parametrize(("window", "tokens", "depth"), [(1, 3, 2), (3, 3, 2), (3, 1, 1), (4, 2, 3)])
def test_contract(window, tokens, depth):
    check_predictor(predictor(window, tokens, depth), ACTION)


@torch.no_grad()
@pytest.mark.parametrize("history", [1, 2, 3, 5])
def test_a_rollout_is_a_naive_recomputation_of_every_window(history):
    made = predictor()
    z, action = inputs(history + 6)
    seen, copies = z[:, :history].repeat_interleave(2, 0), action.repeat_interleave(2, 0)
    copies[1::2] += 1  # two candidate futures
    copies[:, : history - 1] = action[:, : history - 1].repeat_interleave(2, 0)
    cache = made.begin(z[:, :history], action[:, : history - 1]).expand(2)
    for t in range(history - 1, history + 5):
        first = max(0, t - 2)
        naive = published(made, seen[:, first : t + 1], copies[:, first : t + 1])
        forecast, cache = made.step(cache, copies[:, t])
        assert (forecast - naive).abs().max() < 1e-5, f"step {t}"
        seen = torch.cat([seen, naive.unsqueeze(1)], dim=1)
    assert (made(seen[:, :-1], copies[:, : seen.shape[1] - 1])[:, history - 1 :] - seen[:, history:]).abs().max() < 1e-5


@torch.no_grad()
def test_no_keys_are_kept_when_the_window_moves_for_they_would_be_wrong():
    made = predictor()
    z, action = inputs(4)
    cache, held = made.begin(z[:, :1], action[:, :0]), []
    for t in range(4):
        held.append(cache.keys[0].shape[2] if cache.keys else None)
        assert cache.latents.shape[1] == min(t + 1, 3)
        before, (_, cache) = cache, made.step(cache, action[:, t])
        cache.latents = torch.cat([cache.latents[:, :-1], z[:, t + 1 : t + 2]], 1) if t < 3 else cache.latents
    assert held == [0, 3, 6, None] and not cache.keys
    # keys that stayed would hold positions, and an influence, that a window which begins later does not have
    keys = []
    for first in (0, 1):
        x = made.begin(z[:, first:3], action[:, first:2])
        keys.append(x.keys[1][:, :, -TOKENS:])
    assert not torch.allclose(*keys, atol=1e-2) and before.keys == []


@torch.no_grad()
def test_a_frame_sees_all_patches_of_its_own_and_none_of_the_next():
    made = predictor()
    z, action = inputs(3)
    p, moved = made(z, action), z.clone()
    moved[:, 1, 2] += torch.linspace(-3, 3, DIM)
    differs = (made(moved, action) - p).abs().amax((0, 3)) > 1e-6
    assert differs.tolist() == [[False] * 3, [True] * 3, [True] * 3]


@pytest.mark.parametrize(("kind", "dim"), [(WorldModel, 8), (ProprioWorld, DIM)])
def test_worlds_take_it(kind, dim):
    torch.manual_seed(0)
    encoder, space = ViT(8, 16, 8, 16, 1, 2, "none", norm=False), ActionSpec((-1.0,), (1.0,), (0.1,), (0.5,), block=2)
    made = kind(encoder, PatchWindowPredictor(dim, 4, CHANNELS, 1, 2, 6, 3, 24), Frozen(False), rollout_steps=2).eval()
    made.bind(Specs(space, ObservationSpec(16, 16, proprio_mean=(0.2, 4.0), proprio_std=(2.0, 1.0))))
    if kind is WorldModel:
        check_world(made)
    video = torch.randint(0, 256, (2, 6, 3, 16, 16), dtype=torch.uint8)
    found = made(Sample(video=video, action=torch.randn(2, 5, 2), proprio=torch.randn(2, 6, 2)))
    assert found.p.shape == (2, 5, 4, dim) and found.rollout.shape == (2, 2, 4, dim)
    assert torch.allclose(found.rollout[:, 0], found.p[:, 3], atol=1e-5), "a rollout begins as a forced forecast"


def test_gradients_flow_through_a_rollout_beyond_the_window_and_dropout_is_trainings():
    made = predictor().train()
    z, action = inputs(6)
    assert not torch.equal(made(z, action), made(z, action))
    made.eval()
    action.requires_grad_()
    cache = made.begin(z[:, :1], action[:, :0])
    for t in range(6):
        forecast, cache = made.step(cache, action[:, t])
    forecast.square().sum().backward()
    assert (action.grad.abs().sum((0, 2)) > 0).all() and made.position.grad.abs().sum() > 0


@pytest.mark.parametrize("given", [{"window": 0}, {"dropout": 1.0}, {"action_channels": 0}])
def test_wrong_sizes_are_one_line(given):
    with pytest.raises(InputError, match="PatchWindowPredictor was given") as told:
        PatchWindowPredictor(**given)
    assert "\n" not in str(told.value)
    with pytest.raises(AssertionError, match="N=3 tokens per frame, not 2"):
        predictor()(torch.zeros(1, 2, 2, DIM), torch.zeros(1, 2, ACTION))
