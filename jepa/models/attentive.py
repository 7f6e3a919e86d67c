"""The attentive classifier of V-JEPA (depth 1) and V-JEPA 2 (depth 4): a learned query attends over all tokens.

Sources: Bardes et al. 2024 (V-JEPA, arXiv:2404.08471), Assran et al. 2025 (V-JEPA 2, arXiv:2506.09985).
The query is not normalised before its projection, the cross attention has no output projection, and a linear layer
reads the pooled vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.layers import Block, FeedForward, initialise

NORM_EPS = 1e-5  # of the published probes; the encoders' blocks, and the probes of HF transformers, use 1e-6


class CrossAttention(nn.Module):
    """Attention of ``query [1,Q,D]`` over ``norm(x) [B,L,D]``, without an output projection: ``[B,Q,D]``.

    A handful of queries asks about many tokens, so the weights move to the query's side: ``q (W x)^T = (q W) x^T``,
    and the values are projected after they were averaged. No token is projected, which gives the same numbers as
    projecting all of them; the bias of the keys adds the same to every score and drops out. What is left to do with
    the tokens, :func:`look`, does not know the weights, so the queries of many modules can share it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def ask(self, query: Tensor, norm: nn.LayerNorm) -> Tensor:
        """What the queries ``[1,Q,D]`` look for in normalised tokens: ``[Q*heads,D]``."""
        key = self.kv.weight.chunk(2)[0].unflatten(0, (self.heads, -1))  # [heads,D/heads,D]
        q = self.q(query[0]).unflatten(-1, (self.heads, -1)) / math.sqrt(key.shape[1])
        return torch.einsum("qhd,hde->qhe", q, key * norm.weight).flatten(0, 1)

    def answer(self, mean: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Of the tokens that each ask found, their mean ``[B,Q*heads,D]``, to values ``[B,Q,D]``."""
        value = self.kv.weight.chunk(2)[1].unflatten(0, (self.heads, -1))
        mean = mean.unflatten(1, (-1, self.heads)) * norm.weight + norm.bias
        return torch.einsum("bqhe,hde->bqhd", mean, value).flatten(2) + self.kv.bias.chunk(2)[1]


def normalised(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Layer norm of tokens ``[...,D]`` without parameters: these move to the side of the queries."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def look(ask: Tensor, x: Tensor) -> Tensor:
    """The tokens ``x [B,L,D]`` averaged by the softmax of their products with each ``ask [A,D]``: ``[B,A,D]``."""
    share = (x @ ask.T).softmax(dim=1)  # [B,L,A]
    return share.transpose(1, 2) @ x


class CrossAttentionBlock(nn.Module):
    """Cross attention, then a feed-forward, each with a residual: ``query [1,Q,D]`` over ``x [B,L,D]``, ``[B,Q,D]``."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1, self.xattn = nn.LayerNorm(dim, eps=eps), CrossAttention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=eps), FeedForward(dim, round(dim * mlp_ratio))

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        return self.answer(query, look(self.ask(query), normalised(x, self.norm1.eps)))

    def ask(self, query: Tensor) -> Tensor:
        """What the queries look for in normalised tokens: ``[Q*heads,D]``."""
        return self.xattn.ask(query, self.norm1)

    def answer(self, query: Tensor, mean: Tensor) -> Tensor:
        """The block's output ``[B,Q,D]``, of the mean ``[B,Q*heads,D]`` of the tokens that each ask found."""
        query = query + self.xattn.answer(mean, self.norm1)
        return query + self.mlp(self.norm2(query))


class AttentivePooler(nn.Module):
    """``depth - 1`` self-attention blocks, then one cross-attention block with learned queries.

    Args:
        dim: token width D.
        heads: attention heads.
        depth: number of blocks, the cross-attention block included.
        queries: Q, number of learned queries.
        mlp_ratio: hidden width of the feed-forward layers over ``dim``.
        eps: of the layer norms.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int = 1,
        queries: int = 1,
        mlp_ratio: float = 4.0,
        eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or dim % heads:
            raise InputError(
                f"an attentive pooler was given width {dim}, heads={heads}, depth={depth}; expected heads that divide "
                "the width, and depth 1 or more"
            )
        self.query_tokens = nn.Parameter(torch.empty(1, queries, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth - 1))
        self.cross_attention_block = CrossAttentionBlock(dim, heads, mlp_ratio, eps)
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = eps
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        self.apply(initialise)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                block.attn.proj.weight.div_(math.sqrt(2 * number))
                block.mlp[-1].weight.div_(math.sqrt(2 * number))
            self.cross_attention_block.mlp[-1].weight.div_(math.sqrt(2 * (len(self.blocks) + 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B,L,D]`` to what each query pooled, ``[B,Q,D]``."""
        for block in self.blocks:
            x = block(x)
        return self.cross_attention_block(self.query_tokens, x)

    def ask(self) -> Tensor:
        """What the queries look for in normalised tokens: ``[Q*heads,D]``."""
        return self.cross_attention_block.ask(self.query_tokens)

    def answer(self, mean: Tensor) -> Tensor:
        """The output ``[B,Q,D]``, of the mean ``[B,Q*heads,D]`` of the tokens that each ask found."""
        return self.cross_attention_block.answer(self.query_tokens, mean)


class AttentiveClassifier(nn.Module):
    """The published module, pooler and linear layer: tokens ``[B,L,D]`` to ``[B,outputs]``, read by the first query.

    Args:
        dim: token width D.
        heads: attention heads.
        depth: number of blocks, the cross-attention block included.
        outputs: number of classes, or of values.
        queries: learned queries of the pooler.
        mlp_ratio: hidden width of the feed-forward layers over ``dim``.
        eps: of the layer norms.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        outputs: int,
        queries: int = 1,
        mlp_ratio: float = 4.0,
        eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.pooler = AttentivePooler(dim, heads, depth, queries, mlp_ratio, eps)
        self.linear = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.pooler(x))

    def read(self, pooled: Tensor) -> Tensor:
        """What the queries pooled, ``[B,Q,D]``, to ``[B,outputs]``."""
        return self.linear(pooled[:, 0])


class ActionAnticipator(nn.Module):
    """The published probe of EPIC-KITCHENS-100: a query and a linear layer for each of its answers.

    Maps tokens ``[B,L,D]`` to scores ``{name: [B,classes]}``.

    Args:
        dim: token width D.
        heads: attention heads.
        depth: number of blocks, the cross-attention block included.
        classes: how many of each name, in the order of the queries: verb, noun, action.
        mlp_ratio: hidden width of the feed-forward layers over ``dim``.
    """

    def __init__(self, dim: int, heads: int, depth: int, classes: Mapping[str, int], mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.pooler = AttentivePooler(dim, heads, depth, len(classes), mlp_ratio)
        self.classifiers = nn.ModuleDict({name: nn.Linear(dim, count) for name, count in classes.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.read(self.pooler(x))

    def read(self, pooled: Tensor) -> dict[str, Tensor]:
        """What the queries pooled, ``[B,Q,D]``, to scores ``{name: [B,classes]}``."""
        return {name: layer(query) for (name, layer), query in zip(self.classifiers.items(), pooled.unbind(1))}
