"""The attentive probe of V-JEPA (depth 1) and V-JEPA 2 (depth 4): see :mod:`jepa.models.attentive`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from jepa.errors import InputError
from jepa.models.attentive import AttentiveClassifier, normalised
from probes.base import Probe

NEAR = {"cpu": 2**22, "cuda": 2**28}  # bytes of tokens that are looked at in one go; on a CPU they stay in its cache
KEPT = 24  # numbers of the width of a token that a self-attention block keeps for its gradient


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
        return self._raw(self.head(z.flatten(1, 2)))

    def _raw(self, out: Tensor) -> Tensor:
        return out if self.classes else self.target.inverse(out)

    def together(self, weights: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """Of depth 1, all heads look at the tokens in one product of matrices, and no head projects a token."""
        if self.depth > 1:
            return super().together(weights, z)
        count = len(next(iter(weights.values())))
        asks = torch.vmap(lambda own: functional_call(_Asking(self), own))(_within(weights))
        eps = self.head.pooler.cross_attention_block.norm1.eps
        found = _Look.apply(asks.flatten(0, 1), z.flatten(1, 2), eps).unflatten(1, (count, -1))
        return torch.vmap(lambda own, mean: functional_call(_Reading(self), own, mean), (0, 1))(_within(weights), found)

    def footprint(self, z: Tensor) -> int:
        """Depth 1 keeps the shares of the tokens; the blocks below a deeper one keep what they made of each token."""
        tokens, width = z.shape[1] * z.shape[2], z.shape[3]
        of_token = 2 * self.heads if self.depth == 1 else (self.depth - 1) * KEPT * width
        return 4 * (tokens * of_token + (2 * self.heads + KEPT) * width)


def _within(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"probe.{name}": value for name, value in weights.items()}


class _Asking(nn.Module):
    """The part of a probe before the tokens: what its query looks for, ``[heads,D]``."""

    def __init__(self, probe: AttentiveProbe) -> None:
        super().__init__()
        self.probe = probe

    def forward(self) -> Tensor:
        return self.probe.head.pooler.ask()


class _Reading(nn.Module):
    """The part of a probe after the tokens: from what the query found, ``[B,heads,D]``, to the prediction."""

    def __init__(self, probe: AttentiveProbe) -> None:
        super().__init__()
        self.probe = probe

    def forward(self, mean: Tensor) -> Tensor:
        head = self.probe.head
        return self.probe._raw(head.read(head.pooler.answer(mean)))


class _Look(torch.autograd.Function):
    """:func:`jepa.models.attentive.look` at frozen tokens ``x [B,L,D]``, of any precision and not yet normalised.

    They get no gradient, which leaves four products of matrices: two forth and two back.
    """

    @staticmethod
    def forward(ctx: Any, ask: Tensor, x: Tensor, eps: float) -> Tensor:
        assert not x.requires_grad, "latents of a probe are frozen"
        mean, shares = ask.new_empty(len(x), *ask.shape), []
        for place, tokens in _few(x, ask, eps):
            asks = ask.expand(len(tokens), -1, -1)
            shares.append(torch.bmm(asks, tokens.transpose(1, 2)).softmax(dim=-1))  # [b,A,L]
            mean[place] = torch.bmm(shares[-1], tokens)
        ctx.eps = eps
        ctx.save_for_backward(ask, x, mean, *shares)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ask, x, mean, *shares = ctx.saved_tensors
        found, centre = torch.zeros_like(ask), (grad * mean).sum(-1, keepdim=True)
        for (place, tokens), share in zip(_few(x, ask, ctx.eps), shares):
            score = torch.bmm(grad[place], tokens.transpose(1, 2)).sub_(centre[place]).mul_(share)  # of the softmax
            found.addbmm_(score, tokens)
        return found, None, None


def _few(x: Tensor, ask: Tensor, eps: float) -> Iterator[tuple[slice, Tensor]]:
    """A few examples after another: their place, and their normalised tokens ``[b,L,D]``."""
    size = max(1, NEAR.get(x.device.type, NEAR["cpu"]) // (x[0].numel() * ask.element_size()))
    for first in range(0, len(x), size):
        place = slice(first, first + size)
        yield place, normalised(x[place].to(ask.dtype), eps)
