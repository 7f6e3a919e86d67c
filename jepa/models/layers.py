"""The pieces that every transformer here is made of: attention, feed-forward, pre-norm and modulated blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jepa.models.linear import Linear

Rotate = Callable[[Tensor], Tensor]  # [...,B,heads,L,head] -> the same, rotated by position
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values [B,heads,L,head] -> [B,heads,L,head]
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys and values -> all that may be attended to


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm without parameters over the last axis: puts latents on one sphere, targets and forecasts alike."""
    return F.layer_norm(x, x.shape[-1:])


def take(x: Tensor, index: Tensor, row: Tensor | None = None) -> Tensor:
    """Tokens ``index [R,K]`` of ``x [B,L,D]``: ``[R,K,D]``. Row r reads row r mod B, so R is a multiple of B.

    Packed, all rows lie end to end in ``index [1,K]``, and ``row [K]`` says which one each of its tokens belongs to.
    """
    # whole tokens are copied, where a gather would look up every number of them
    row = torch.arange(len(index), device=x.device)[:, None] if row is None else row
    place = index + row % len(x) * x.shape[1]
    return x.flatten(0, 1).index_select(0, place.flatten()).unflatten(0, index.shape)


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
        super().__init__(Linear(width, hidden), nn.GELU(), Linear(hidden, width))

    @property
    def last(self) -> nn.Linear:
        return self[-1]


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020), ``[...,D]`` to ``[...,D]``: fc3(SiLU(fc1(x)) * fc2(x)).

    Two thirds of ``hidden``, rounded up to a multiple of 8, so that it has about as many weights as a plain one.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = 8 * -(-(2 * hidden // 3) // 8)
        self.fc1, self.fc2 = Linear(width, hidden), Linear(width, hidden)
        self.fc3 = Linear(hidden, width)

    @property
    def last(self) -> nn.Linear:
        return self.fc3

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class Attention(nn.Module):
    """Multi-head self-attention, ``[B,L,D]`` to ``[B,L,D]``.

    ``rotate`` turns queries and keys by their position; ``store`` swaps the new keys and values for those of a cache;
    ``mask`` is boolean and broadcasts to [B,heads,L,keys], true where attention is allowed; ``attend`` takes the place
    of attention among all tokens of a row. Only tokens from ``first`` on are answered: [B,L-first,D].
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotate: Rotate | None = None,
        store: Store | None = None,
        attend: Attend | None = None,
        first: int = 0,
    ) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        # queries and keys together: one rotation for both, and one copy where the gradients of all three meet
        qk, v = qkv.permute(2, 0, 3, 1, 4).split((2, 1))
        q, k = qk if rotate is None else rotate(qk)
        q, v = q[:, :, first:], v[0]
        if store is not None:
            k, v = store(k, v)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask) if attend is None else attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length - first, width))


class Block(nn.Module):
    """Pre-norm transformer block, ``[B,L,D]`` to ``[B,L,D]``, or to the tokens from ``first`` on."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, swiglu: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = (SwiGLU if swiglu else FeedForward)(width, round(width * mlp_ratio))

    def forward(
        self, x: Tensor, rotate: Rotate | None = None, attend: Attend | None = None, first: int = 0
    ) -> Tensor:
        x = x[:, first:] + self.attn(self.norm1(x), rotate=rotate, attend=attend, first=first)
        return x + self.mlp(self.norm2(x))


def run(
    blocks: Sequence[Block],
    x: Tensor,
    rotate: Rotate | None = None,
    attend: Attend | None = None,
    recompute: bool = False,
    levels: Sequence[int] | None = None,
    first: int = 0,
) -> list[Tensor]:
    """The tokens ``[B,L,D]`` behind the blocks of these numbers, the last block by default.

    ``recompute`` keeps only what goes into each block and computes the rest again in the backward pass (activation
    checkpointing): the same gradients from less memory. The last block leaves out the tokens before ``first``.
    """
    last = len(blocks) - 1
    levels = (last,) if levels is None else levels
    found = []
    for number, block in enumerate(blocks):
        start = first if number == last else 0
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, rotate, attend, start, use_reentrant=False, preserve_rng_state=False)
        else:
            x = block(x, rotate, attend, start)
        if number in levels:
            found.append(x)
    return found


class ModulatedBlock(nn.Module):
    """A block whose layer norms are scaled, shifted and gated by a condition (adaptive layer norm, Peebles & Xie 2023).

    The modulation starts near, not at, identity: gates start at one and the condition's weights are small, because
    starting from zero gates (adaLN-zero) learns to use the action later (Terver et al. 2025, JEPA-WMs).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.modulation = small(Linear(width, 6 * width))
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
