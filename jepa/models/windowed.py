"""Predictors whose learned positions count from the start of a sliding window, as LeWM and DINO-WM are published.

What a frame contributes changes when the window moves on, since it then stands at another position and has lost the
frames before it: a ring of keys and values would be another model. The last latents and actions are kept instead, and
the window is computed again for every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.layers import Store
from jepa.models.predictors import Predictor


class WindowBlock(nn.Module):
    """What blocks of windowed predictors share: norms with weights, and heads as wide as is asked, whatever ``width``.

    A child is called with tokens x [B,L,width], what its predictor embeds beside them, and the keywords of
    :meth:`_attend` with ``newest``: how many of the last tokens to answer for, 0 for all.
    """

    def _build(self, width: int, heads: int, head: int, hidden: int, dropout: float) -> None:
        self.heads, self.head, self.dropout = heads, head, dropout
        self.attn_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head, bias=False)
        self.proj = nn.Sequential(nn.Linear(heads * head, width), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def _attend(self, x: Tensor, queries: int, order: Mapping[str, Any], store: Store | None) -> Tensor:
        """x [B,L,width] -> [B,queries,width] of the last tokens.

        ``order`` is how attention keeps to time, of torch's ``scaled_dot_product_attention``; ``store`` adds the keys
        and values of the frames before.
        """
        q, k, v = self.qkv(self.attn_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if store is not None:
            k, v = store(k, v)
        x = F.scaled_dot_product_attention(q[:, :, -queries:], k, v, dropout_p=self.dropout * self.training, **order)
        return self.proj(x.transpose(1, 2).flatten(2))


@dataclass
class WindowCache:
    """The last frames, at most a window of them, and the embedded actions between them.

    Until the window moves on, also the keys and values of the frames before the newest; no more afterwards.
    """

    latents: Tensor  # [B,L,N,D]; the newest waits for its action
    conditions: Tensor  # [B,L-1,C]
    keys: list[Tensor]  # one per block: [B,heads,(L-1)*N,head]; none when the window has moved
    values: list[Tensor]

    def expand(self, copies: int) -> WindowCache:
        """Row b becomes rows b*copies ... (b+1)*copies-1: one past, many candidate futures."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(copies, dim=0)

        lists = ([*map(repeat, parts)] for parts in (self.keys, self.values))
        return WindowCache(repeat(self.latents), repeat(self.conditions), *lists)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [B,heads,L*N,head] to those of a layer; return all of them."""
        self.keys[layer] = torch.cat([self.keys[layer], k], dim=2)
        self.values[layer] = torch.cat([self.values[layer], v], dim=2)
        return self.keys[layer], self.values[layer]


class WindowedPredictor(Predictor):
    """Transformer over the last ``window`` frames; a frame attends to itself and those before it in the window.

    ``forward`` gives each forecast from the window that ends with its frame; up to ``window`` frames are one pass, as
    it is published. ``begin`` and ``step`` give the same numbers.

    Cost of a rollout: while the window fills, keys and values are kept and a step computes the N tokens of the newest
    frame. From then on they cannot be, and a step computes all ``window`` * N tokens (in the last block only the newest
    frame's, beyond keys and values): nearly ``window`` times the work, which the ring cache of
    :class:`jepa.models.predictors.ActionPredictor` never does.

    A child makes ``condition``, ``position``, ``blocks`` and ``final_norm``, and says how latents go in and come out.
    """

    condition: nn.Module | None  # of actions [B,T,A]; None until bind builds it
    position: nn.Parameter  # [1,window*N,width]
    blocks: nn.ModuleList  # of WindowBlock
    final_norm: nn.LayerNorm

    def _embed(self, latents: Tensor, conditions: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Latents [B,L,N,D], conditions [B,L,C], positions [1,L*N,width] -> tokens [B,L*N,width], and what else the
        blocks are given."""
        raise NotImplementedError(f"{type(self).__name__} must embed latents")

    def _finish(self, x: Tensor) -> Tensor:
        """Normed tokens [B,L,N,width] -> forecasts [B,L,N,D]."""
        raise NotImplementedError(f"{type(self).__name__} must make forecasts of tokens")

    def _conditions(self, action: Tensor) -> Tensor:
        """[B,T,A] -> [B,T,C]"""
        assert self.condition is not None, f"{type(self).__name__}.bind was not called"
        return self.condition(action)

    def _order(self, frames: int, device: torch.device) -> dict[str, Any]:
        """Every frame attends to all tokens of itself and of those before it."""
        if frames == 1:
            return {}
        if self.tokens == 1:
            return {"is_causal": True}
        frame = torch.arange(frames, device=device).repeat_interleave(self.tokens)
        return {"attn_mask": frame[:, None] >= frame}

    def _see(
        self, latents: Tensor, conditions: Tensor, cache: WindowCache | None = None, newest: bool = False
    ) -> Tensor:
        """Latents [B,L,N,D] and conditions [B,L,C], all of one window -> [B,L,N,width]; [B,1,N,width] of the newest.

        With a cache they follow the frames whose keys and values are there, and leave theirs.
        """
        first = 0 if cache is None else cache.keys[0].shape[2]
        frames = latents.shape[1]
        x, *given = self._embed(latents, conditions, self.position[:, first : first + frames * self.tokens])
        order = self._order(frames, x.device)
        for layer, block in enumerate(self.blocks):
            alone = newest and layer == len(self.blocks) - 1
            store = None if cache is None else partial(cache.store, layer)
            x = block(x, *given, order={} if alone else order, store=store, newest=self.tokens * alone)
        return self.final_norm(x).unflatten(1, (-1, self.tokens))

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        steps, tokens = z.shape[1:3]
        assert tokens == self.tokens, f"{type(self).__name__} sees N={self.tokens} tokens per frame, not {tokens}"
        parts = z, self._conditions(action)
        x = self._see(*(part[:, : self.window] for part in parts))
        if (later := steps - self.window) > 0:
            windows = (part[:, 1:].unfold(1, self.window, 1).movedim(-1, 2).flatten(0, 1) for part in parts)
            x = torch.cat([x, self._see(*windows, newest=True).view(-1, later, *x.shape[2:])], dim=1)
        return self._finish(x)

    def begin(self, z: Tensor, action: Tensor) -> WindowCache:
        steps = z.shape[1]
        assert action.shape[1] == steps - 1, f"{steps} latents want {steps - 1} actions between them: {action.shape}"
        first = max(0, steps - self.window)
        latents, conditions = z[:, first:], self._conditions(action[:, first:])
        if first:
            return WindowCache(latents, conditions, [], [])
        nothing = [z.new_zeros(len(z), block.heads, 0, block.head) for block in self.blocks]
        cache = WindowCache(latents, conditions, [*nothing], [*nothing])
        if steps > 1:
            self._see(latents[:, :-1], conditions, cache)
        return cache

    def step(self, cache: WindowCache, action: Tensor) -> tuple[Tensor, WindowCache]:
        condition = self._conditions(action.unsqueeze(1))
        conditions = torch.cat([cache.conditions, condition], dim=1)
        after = WindowCache(cache.latents, conditions, [*cache.keys], [*cache.values])
        if cache.keys:
            x = self._see(cache.latents[:, -1:], condition, after)
        else:
            x = self._see(cache.latents, conditions, newest=True)
        z = self._finish(x)
        first = max(0, cache.latents.shape[1] + 1 - self.window)
        after.latents, after.conditions = torch.cat([cache.latents, z], dim=1)[:, first:], conditions[:, first:]
        if first:
            after.keys, after.values = [], []
        return z[:, 0], after
