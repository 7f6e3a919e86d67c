"""The attentive probe of V-JEPA (depth 1) and V-JEPA 2 (depth 4).

Sources: Bardes et al. 2024 (V-JEPA, arXiv:2404.08471), Assran et al. 2025 (V-JEPA 2, arXiv:2506.09985).
A learned query attends over all tokens of a window; the query is not normalised before its projection, the cross
attention has no output projection, and a linear layer reads the pooled vector. :func:`from_published` and
:func:`to_published` translate the names of the published weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.layers import Block, FeedForward, initialise
from probes.base import Probe

NORM_EPS = 1e-5  # of the published probes; the encoders' blocks use 1e-6


class CrossAttention(nn.Module):
    """Attention of ``query [B,Q,D]`` over ``x [B,L,D]``, without an output projection: ``[B,Q,D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = self.kv(x).chunk(2, dim=-1)
        return F.scaled_dot_product_attention(split(self.q(query)), split(k), split(v)).transpose(1, 2).flatten(2)


class CrossAttentionBlock(nn.Module):
    """Cross attention, then a feed-forward, each with a residual: ``query [B,Q,D]`` over ``x [B,L,D]``, ``[B,Q,D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.xattn = nn.LayerNorm(dim, eps=NORM_EPS), CrossAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=NORM_EPS), FeedForward(dim, 4 * dim)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        query = query + self.xattn(query, self.norm1(x))
        return query + self.mlp(self.norm2(query))


class AttentivePooler(nn.Module):
    """``depth - 1`` self-attention blocks, then one cross-attention block with a learned query.

    Args:
        dim: token width D.
        heads: attention heads.
        depth: number of blocks, the cross-attention block included.
    """

    def __init__(self, dim: int, heads: int, depth: int = 1) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth - 1))
        self.cross_attention_block = CrossAttentionBlock(dim, heads)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        self.apply(initialise)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                block.norm1.eps = block.norm2.eps = NORM_EPS
                block.attn.proj.weight.div_(math.sqrt(2 * number))
                block.mlp[-1].weight.div_(math.sqrt(2 * number))
            self.cross_attention_block.mlp[-1].weight.div_(math.sqrt(2 * (len(self.blocks) + 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B,L,D]`` to ``[B,D]``."""
        for block in self.blocks:
            x = block(x)
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)[:, 0]


class AttentiveClassifier(nn.Module):
    """The published module, pooler and linear layer: tokens ``[B,L,D]`` to ``[B,outputs]``."""

    def __init__(self, dim: int, heads: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.pooler = AttentivePooler(dim, heads, depth)
        self.linear = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pooler(x))


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a published probe (``mlp.fc1``, ``mlp.fc2``) to those of :class:`AttentiveClassifier`."""
    return {name.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.2."): value for name, value in state.items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_published`."""
    return {name.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2."): value for name, value in state.items()}


class AttentiveProbe(Probe):
    """A learned query attends over every token of the window. Trained by gradient.

    Args:
        depth: 1 as in V-JEPA, 4 as in V-JEPA 2.
        heads: attention heads; must divide the width of the latents.
        classes: number of classes of the target; 0 means regression.
    """

    def __init__(self, depth: int = 1, heads: int = 4, classes: int = 0) -> None:
        super().__init__(classes)
        if depth < 1 or heads < 1:
            raise InputError(f"depth={depth}, heads={heads}: expected at least 1 of each, give depth 1 or 4")
        self.depth, self.heads = depth, heads

    def build(self, z: Tensor, y: Tensor) -> None:
        dim = z.shape[-1]
        if dim % self.heads:
            raise InputError(f"heads={self.heads} on latents of width {dim}: expected a divisor, change heads")
        self.head = AttentiveClassifier(dim, self.heads, self.depth, self.measure_target(y))

    def forward(self, z: Tensor) -> Tensor:
        out = self.head(z.flatten(1, 2))
        return out if self.classes else self.target.inverse(out)
