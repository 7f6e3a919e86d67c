"""The action predictor: p[t] forecasts z[t+1] from the latents and actions up to t, and a ring cache is the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.layers import ModulatedBlock, layer_norm, small
from jepa.models.positions import rotary_table, rotate


@dataclass
class RingCache:
    """Keys and values of the last ``window`` frames, and the latent that waits for its action.

    A step consumes the cache: without gradients its memory is overwritten in place. ``expand`` copies.
    """

    pending: Tensor  # [B,N,D]
    keys: list[Tensor]  # one per block: [B,heads,window,N,head]
    values: list[Tensor]
    time: int = 0  # frames stored so far; the next goes to slot time % window

    def expand(self, copies: int) -> RingCache:
        """Row b becomes rows b*copies ... (b+1)*copies-1: one past, many candidate futures."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(copies, dim=0)

        return RingCache(repeat(self.pending), [*map(repeat, self.keys)], [*map(repeat, self.values)], self.time)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the newest frame's [B,heads,N,head] into its slot; return all that is stored, [B,heads,L,head]."""
        window = self.keys[layer].shape[2]
        slot, filled = self.time % window, min(self.time + 1, window)
        self.keys[layer] = _write(self.keys[layer], slot, k)
        self.values[layer] = _write(self.values[layer], slot, v)
        # slots out of order are no matter: attention sums over a set, and every key carries its own time
        return self.keys[layer][:, :, :filled].flatten(2, 3), self.values[layer][:, :, :filled].flatten(2, 3)


def _write(ring: Tensor, slot: int, new: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        ring[:, :, slot] = new
        return ring
    return ring.index_copy(2, torch.arange(slot, slot + 1, device=ring.device), new.unsqueeze(2))


class Predictor(nn.Module):
    """What forecasts the next latent from latents and actions; its promises are those of ``check_predictor``.

    ``begin`` and ``step`` give the numbers of ``forward``; a cache has ``expand(copies)``, one past for many futures.
    """

    dim: int  # D
    tokens: int  # N
    window: int  # frames that one forecast sees

    def bind(self, action_width: int) -> None:
        """Build the action embedding, whose width only the data knows."""
        raise NotImplementedError(f"{type(self).__name__} must take the width of an action")

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """z [B,T,N,D] and normalised actions [B,T,A] -> p [B,T,N,D], where p[:, t] forecasts z[:, t+1]."""
        raise NotImplementedError(f"{type(self).__name__} must forecast")

    def begin(self, z: Tensor, action: Tensor) -> Any:
        """The cache after latents [B,T,N,D] and the T-1 normalised actions [B,T-1,A] between them."""
        raise NotImplementedError(f"{type(self).__name__} must begin a rollout")

    def step(self, cache: Any, action: Tensor) -> tuple[Tensor, Any]:
        """Normalised action [B,A] -> the next latent [B,N,D], which becomes the pending one, and the cache."""
        raise NotImplementedError(f"{type(self).__name__} must step a rollout")


class ActionPredictor(Predictor):
    """Causal transformer over frames, conditioned on actions by adaptive layer norm.

    Tokens of frame t attend to all tokens of frames t-window+1 ... t. Time enters only as a rotary index, so what a
    frame contributes does not depend on where a window begins, and ``begin``/``step`` give exactly the numbers of
    ``forward`` while a rollout pays for one new frame per step: N tokens go through the blocks and attend to
    window * N keys. Published predictors whose positions count from the start of a window cannot do that:
    ``jepa.models.windowed`` computes window * N tokens per step for them.

    Args:
        dim: D, of the latents that come in and go out.
        width: of the transformer.
        depth: number of blocks.
        heads: attention heads.
        window: how many frames a frame sees in each block, itself included.
        tokens: N, tokens per frame.
        mlp_ratio: hidden width of the feed-forward layers over ``width``.
        norm: end with a layer norm without parameters; set it as on the target's side.
    """

    def __init__(
        self,
        dim: int = 64,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        window: int = 8,
        tokens: int = 1,
        mlp_ratio: float = 2.0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if window < 1 or width % heads or (width // heads) % 2:
            raise InputError(
                f"ActionPredictor was given width {width}, heads {heads}, window {window}; it needs an even number of "
                "dimensions per head and a window of at least 1"
            )
        self.dim, self.heads, self.window, self.tokens, self.norm = dim, heads, window, tokens, norm
        self.head = width // heads
        self.embed = nn.Linear(dim, width)
        self.space = nn.Parameter(0.02 * torch.randn(tokens, width)) if tokens > 1 else None
        self.condition: nn.Sequential | None = None
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.project = small(nn.Linear(width, dim))  # at first, nothing changes

    def bind(self, action_width: int) -> None:
        width = self.embed.out_features
        self.condition = nn.Sequential(nn.Linear(action_width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def _embed(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """z [B,T,N,D], action [B,T,A] -> tokens and conditions [B,T,N,width]."""
        assert self.condition is not None, "ActionPredictor.bind was not called"
        x = self.embed(z)
        return x if self.space is None else x + self.space, self.condition(action).unsqueeze(2).expand_as(x)

    def _finish(self, z: Tensor, x: Tensor) -> Tensor:
        """The network forecasts the change."""
        z = z + self.project(layer_norm(x))
        return layer_norm(z) if self.norm else z

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        steps, tokens = z.shape[1:3]
        frame = torch.arange(steps, device=z.device)
        age = frame[:, None] - frame[None, :]
        band = (age >= 0) & (age < self.window)
        mask = band.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        table = rotary_table(frame.repeat_interleave(tokens), self.head)
        x, condition = (part.flatten(1, 2) for part in self._embed(z, action))
        for block in self.blocks:
            x = block(x, condition, mask, lambda t: rotate(t, table))
        return self._finish(z, x.view(*z.shape[:3], -1))

    def begin(self, z: Tensor, action: Tensor) -> RingCache:
        batch, steps, tokens, _ = z.shape
        assert action.shape[1] == steps - 1, f"{steps} latents want {steps - 1} actions between them: {action.shape}"
        shape = (batch, self.heads, self.window, tokens, self.head)
        empty = [[z.new_zeros(shape) for _ in self.blocks] for _ in range(2)]
        cache = RingCache(z[:, 0], *empty)
        for t in range(steps - 1):
            _, cache = self.step(cache, action[:, t])
            cache.pending = z[:, t + 1]
        return cache

    def step(self, cache: RingCache, action: Tensor) -> tuple[Tensor, RingCache]:
        z = cache.pending.unsqueeze(1)
        time = torch.full((z.shape[2],), cache.time, device=z.device)
        table = rotary_table(time, self.head)
        x, condition = (part.flatten(1, 2) for part in self._embed(z, action.unsqueeze(1)))
        for layer, block in enumerate(self.blocks):
            x = block(
                x, condition, None, lambda t: rotate(t, table), lambda k, v, layer=layer: cache.store(layer, k, v)
            )
        z = self._finish(z, x.unsqueeze(1)).squeeze(1)
        return z, RingCache(z, cache.keys, cache.values, cache.time + 1)
