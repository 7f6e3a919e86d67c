"""The linear layer of the transformers: on a CPU, large products in float32 go to oneDNN.

torch hands products in float32 to MKL, which was the slower of the two on an AMD processor
(``python -m tools.benchmark step``). The numbers are those of ``F.linear``, added up in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

LARGE = 2**27  # multiplications from which the faster product makes up for the longer way to it
AVAILABLE = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """As ``nn.Linear``, with its weights and names: ``[...,inputs]`` to ``[...,outputs]``."""

    def forward(self, x: Tensor) -> Tensor:
        return (linear if _suits(x, self.weight) else F.linear)(x, self.weight, self.bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    if not AVAILABLE or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False  # bfloat16 goes to oneDNN anyway
    return x.numel() * len(weight) >= LARGE


@library.custom_op("jepa::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [...,inputs]`` times ``weight [outputs,inputs]`` transposed, plus ``bias [outputs]``; float32 on a CPU.

    The weight may lie transposed in memory: the way back takes it so, without a copy. An operator of its own, because
    torch offers oneDNN's product for inference only, and because a compiler would copy what is transposed.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
    rows = gradient.flatten(0, -2)
    return (
        linear(gradient, weight.t(), None) if of_x else None,
        rows.t() @ x.flatten(0, -2) if of_weight else None,  # here MKL is as fast
        rows.sum(0) if of_bias else None,
    )


linear.register_autograd(_backward, setup_context=_keep)


@linear.register_vmap
def _(info: Any, batched: tuple[int | None, ...], *parts: Tensor | None) -> tuple[Tensor, int]:
    x, weight, bias = (
        part if part is None else part.expand(info.batch_size, *part.shape) if place is None else part.movedim(place, 0)
        for part, place in zip(parts, batched)
    )
    out = torch.einsum("n...i,noi->n...o", x, weight)
    return out if bias is None else out + bias.view(len(bias), *[1] * (x.ndim - 2), -1), 0


@register_flop_formula(torch.ops.jepa.linear)
def _(x: tuple[int, ...], weight: tuple[int, ...], *rest: Any, out_shape: tuple[int, ...], **others: Any) -> int:
    count = 2 * weight[0]
    for size in x:
        count *= size
    return count
