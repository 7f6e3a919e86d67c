"""SIGReg (LeJEPA, LeWM): latents as an isotropic Gaussian, tested along random directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepa.errors import InputError, check_choice
from jepa.objectives.base import Objective
from jepa.objectives.samples import Over, grouped, joint_count, joint_sum
from jepa.schema import Prediction

REACH = 3.0  # the knots span [0, 3]; the integrand is even, so half the line suffices


def epps_pulley(samples: Tensor, directions: Tensor, knots: int = 17, over: Over = "step") -> Tensor:
    """Mean Epps-Pulley statistic of G groups of samples [G,n,D] along unit directions [D,P]: a scalar.

    For one direction it is n * integral of w(t) |phi_n(t) - exp(-t^2/2)|^2 over the real line cut at +-3, with
    w(t) = exp(-t^2/2) and phi_n the empirical characteristic function, by the trapezoid rule on [0, 3], doubled.
    ``n`` counts the samples of all processes.
    """
    spacing = REACH / (knots - 1)
    t = torch.linspace(0, REACH, knots, dtype=samples.dtype, device=samples.device)
    gauss = torch.exp(-t.square() / 2)
    weight = 2 * spacing * gauss
    weight[[0, -1]] /= 2

    count = joint_count(samples, over)
    real, imaginary = joint_sum(_TrigSums.apply(samples @ directions, spacing, knots), over) / count  # each [K,G,P]
    error = (real - gauss[:, None, None]).square() + imaginary.square()
    return count * torch.einsum("k,kgp->gp", weight, error).mean()


def _multiples(angle: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """cos(k * angle), sin(k * angle) for k = 0 .. count-1, by the addition theorem."""
    cos, sin = torch.ones_like(angle), torch.zeros_like(angle)
    cos_one, sin_one = angle.cos(), angle.sin()
    for _ in range(count):
        yield cos, sin
        cos, sin = cos * cos_one - sin * sin_one, sin * cos_one + cos * sin_one


class _TrigSums(torch.autograd.Function):
    """Sums over n of cos(k * spacing * y) and sin(k * spacing * y): [G,n,P] -> [2,K,G,P].

    Only y is kept for the backward pass, which computes the waves again: one [G,n,P] tensor in memory, not K.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, spacing: float, knots: int) -> Tensor:
        ctx.save_for_backward(y)
        ctx.spacing, ctx.knots = spacing, knots
        return torch.stack([torch.stack((c.sum(1), s.sum(1))) for c, s in _multiples(y * spacing, knots)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        total = torch.zeros_like(y)
        for k, (cos, sin) in enumerate(_multiples(y * ctx.spacing, ctx.knots)):
            along_cos, along_sin = gradient[:, k].unsqueeze(2)
            total += (cos * along_sin - sin * along_cos) * (k * ctx.spacing)
        return total, None, None


class SIGReg(Objective):
    """Epps-Pulley distance of the latents' random projections from the standard normal distribution.

    Always in float32. Every training step draws fresh directions from (seed, step), the same on all processes and for
    all predictions of a step. The step is that of ``begin_step``, or else the number of calls so far; it is part of the
    state dict, so a resumed run continues the sequence. In evaluation the directions are those of step 0, so that
    values compare. Tokens of one step count as samples beside the batch, and the statistic grows
    with their number where the latents are not Gaussian: B*K samples on the [B,1,K,D] of a masked model, whose tokens
    differ by their places even where clips do not; ``over="clip"`` tests the B means over a clip's tokens.

    Args:
        directions: number of random unit directions per step (1024 in LeWM and LeJEPA).
        knots: points of the trapezoid rule on [0, 3].
        over: what counts as one distribution: "step" the B*N vectors of each time step (LeWM), "batch" all B*T*N,
            "clip" the B means over a clip's tokens.
        seed: of the directions.
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    joint = True

    def __init__(
        self,
        directions: int = 1024,
        knots: int = 17,
        over: Literal["step", "batch", "clip"] = "step",
        seed: int = 0,
        weight: float = 1.0,
        ramp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, ramp)
        if directions < 1 or knots < 2:
            raise InputError(f"SIGReg(directions={directions}, knots={knots}): expected at least 1 and 2; raise them")
        self.directions = directions
        self.knots = knots
        self.over = check_choice("SIGReg.over", over, ("step", "batch", "clip"))
        self.seed = seed
        self.step, self._told = 0, False

    def begin_step(self, step: int) -> None:
        self.step, self._told = step, True

    def forward(self, prediction: Prediction) -> Tensor:
        with torch.autocast(prediction.z.device.type, enabled=False):
            samples = grouped(prediction.z, self.over)
            directions = self._draw(samples.shape[-1], self.step if self.training else 0).to(samples)
            self.step += self.training and not self._told
            return epps_pulley(samples, directions, self.knots, self.over)

    def _draw(self, dim: int, step: int) -> Tensor:
        # Drawn on the CPU: the same numbers whatever the accelerator, and no wait for it.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return torch.nn.functional.normalize(torch.randn(dim, self.directions, generator=generator), dim=0)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)

    def extra_repr(self) -> str:
        return f"directions={self.directions}, knots={self.knots}, over={self.over}, {super().extra_repr()}"
