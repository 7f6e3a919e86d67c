"""What counts as a sample of the latents, and sums over the samples of all processes that carry gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from jepa.errors import InputError

Over = Literal["batch", "step", "time", "clip"]
OVER = ("batch", "step", "time", "clip")


def grouped(z: Tensor, over: Over) -> Tensor:
    """Latents [B,T,N,D] as G groups of n samples, [G,n,D], in float32 at least.

    ``batch``: one group of all B*T*N vectors. ``step``: a group of B*N vectors for each of the T steps. ``time``: a
    group of T vectors for each of the B*N tokens, that is, one trajectory. ``clip``: one group of B vectors, the mean
    of all tokens of each clip.

    Masked models give the latents of the visible tokens, [B,1,K,D]: ``batch`` and ``step`` are the same there, and
    since each token has a place of its own, latents that tell nothing but their place already have a spread. ``clip``
    asks that clips differ. The whole video, [B,T,N,D], is as in world models.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if over == "batch":
        return z.flatten(0, 2).unsqueeze(0)
    if over == "clip":
        return z.mean((1, 2)).unsqueeze(0)
    return z.transpose(0, 1).flatten(1, 2) if over == "step" else z.transpose(1, 2).flatten(0, 1)


def joint_sum(local: Tensor, over: Over) -> Tensor:
    """Sum over the processes of their per-group sums. Groups of ``time`` live on one process and stay as they are."""
    return _AllReduceSum.apply(local) if over != "time" and _processes() > 1 else local


def joint_count(samples: Tensor, over: Over) -> Tensor:
    """Number of samples of a group [G,n,D] over all processes, at least 1: a scalar tensor. Predictions that stand in
    for a length that no process has give none; what is divided by the number then counts for nothing."""
    return joint_sum(samples.new_tensor(float(samples.shape[1])), over).clamp(min=1)


def centred(samples: Tensor, over: Over) -> tuple[Tensor, Tensor]:
    """Samples [G,n,D] minus their joint mean, and the joint n - 1.

    Raises:
        InputError: a group has a single sample, so that it has no spread.
    """
    if samples.shape[1] < 2 and (over == "time" or _processes() < 2):
        raise InputError(
            f"a spread over={over!r} was asked of 1 sample; expected at least 2: "
            f"{'lengthen the window of frames' if over == 'time' else 'raise the batch size'}"
        )
    count = joint_count(samples, over)
    mean = joint_sum(samples.sum(1, keepdim=True), over) / count
    return samples - mean, (count - 1).clamp(min=1)


def _processes() -> int:
    # Asked at every call: the process group may be created after the objectives.
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes, forward and backward.

    With S = sum_r s_r and the same loss L(S) on each of W processes, the backward sum gives every process
    W * dL/dS * ds_r; DDP's average over the processes then is sum_r dL/dS * ds_r, the gradient of the joint batch.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
