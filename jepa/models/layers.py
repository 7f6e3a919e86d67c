"""The pieces that every transformer here is made of: attention, feed-forward, pre-norm and modulated blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotate = Callable[[Tensor], Tensor]  # [B,heads,L,head] -> the same, rotated by position
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys and values -> all that may be attended to


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm without parameters over the last axis: puts latents on one sphere, targets and forecasts alike."""
    return F.layer_norm(x, x.shape[-1:])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens ``index [R,K]`` of ``x [B,L,D]``: ``[R,K,D]``. Row r reads row r mod B, so R is a multiple of B."""
    # whole tokens are copied, where a gather would look up every number of them
    start = (torch.arange(len(index), device=x.device) % len(x))[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + start).flatten()).unflatten(0, index.shape)


def initialise(module: nn.Module) -> None:
    """Truncated normal (std 0.02) weights and zero biases for linear layers, as the ViT and JEPA papers do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def small(layer: nn.Linear) -> nn.Linear:
    """A layer that begins by contributing little: weights of std 0.02, no bias."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class FeedForward(nn.Sequential):
    """Linear, GELU, linear: ``[...,D]`` to ``[...,D]``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Attention(nn.Module):
    """Multi-head self-attention, ``[B,L,D]`` to ``[B,L,D]``.

    ``rotate`` turns queries and keys by their position; ``store`` swaps the new keys and values for those of a cache;
    ``mask`` is boolean and broadcasts to [B,heads,L,keys], true where attention is allowed.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, rotate: Rotate | None = None, store: Store | None = None
    ) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if store is not None:
            k, v = store(k, v)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block, ``[B,L,D]`` to ``[B,L,D]``."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, round(width * mlp_ratio))

    def forward(self, x: Tensor, rotate: Rotate | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), rotate=rotate)
        return x + self.mlp(self.norm2(x))


class ModulatedBlock(nn.Module):
    """A block whose layer norms are scaled, shifted and gated by a condition (adaptive layer norm, Peebles & Xie 2023).

    The modulation starts near, not at, identity: gates start at one and the condition's weights are small, because
    starting from zero gates (adaLN-zero) learns to use the action later (Terver et al. 2025, JEPA-WMs).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.modulation = small(nn.Linear(width, 6 * width))
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width, int(width * mlp_ratio))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        mask: Tensor | None = None,
        rotate: Rotate | None = None,
        store: Store | None = None,
    ) -> Tensor:
        """x [B,L,D], condition [B,L,D] or [B,1,D]."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        y = self.attn(torch.addcmul(shift1, layer_norm(x), 1 + scale1), mask, rotate, store)
        x = x + (1 + gate1) * y
        y = self.mlp(torch.addcmul(shift2, layer_norm(x), 1 + scale2))
        return x + (1 + gate2) * y
