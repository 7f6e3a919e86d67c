"""The space that sampling planners search: held, normalised environment actions, and the noise that explores it.

*Knots* ``[B,S,K,a]`` are normalised environment actions, each held for ``hold`` environment steps, whatever the block
of a model step. The bounds are the raw bounds mapped through the same ActionSpec. Some published planners clamp
normalised candidates with raw bounds, which takes the large actions away wherever the standard deviation of the
actions is below one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.schema import Problem


def shift(action: Tensor, steps: int) -> Tensor:
    """Move plans [...,H,A] ``steps`` model steps towards the present: the warm start of the next decision.

    What was planned for step t + steps becomes the plan for step t; the last action fills the end.
    """
    if steps < 0:
        raise ValueError(f"a plan shifts forward in time: steps must be 0 or more, was given {steps}")
    horizon = action.shape[-2]
    steps = min(steps, horizon)
    return torch.cat([action[..., steps:, :], action[..., -1:, :].expand(*action.shape[:-2], steps, -1)], dim=-2)


def coloured_noise(
    shape: tuple[int, ...],
    beta: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Gaussian noise whose power along the last axis falls with frequency as f^-beta (Timmer & Koenig 1995).

    Every element has unit variance over draws. Single sequences keep their own size: scaling each to unit standard
    deviation, as one published iCEM does, removes the difference between bold and careful plans. ``beta`` 0 is white.
    """
    white = torch.randn(shape, generator=generator, device=device)
    length = shape[-1]
    if beta == 0 or length == 1:
        return white
    frequency = torch.fft.fftfreq(length, device=device).abs().clamp_min(1 / length)
    scale = frequency ** (-beta / 2)
    scale = scale / scale.square().mean().sqrt()
    return torch.fft.irfft(torch.fft.rfft(white) * scale[: length // 2 + 1], n=length)


class Knots:
    """The space that the planners search, and the way from it to raw plans.

    Args:
        problem: action space, horizon H, batch B, device
        hold: environment steps for which an action is held, within model steps and across them
    """

    def __init__(self, problem: Problem, hold: int) -> None:
        space = problem.space
        if space.choices:
            raise InputError(
                f"this planner searches continuous actions, but the action is one of {space.choices} choices; use "
                "jepa.planning.CategoricalCEM or jepa.planning.TreeSearch"
            )
        if min(space.std) <= 0 or not all(map(math.isfinite, (*space.mean, *space.std))):
            raise InputError(
                f"planning needs finite action statistics with std above 0, was given mean={space.mean} and "
                f"std={space.std}; compute them on data in which every action dimension varies"
            )
        self.problem, self.hold = problem, hold
        self.length = problem.horizon * space.block
        self.count = math.ceil(self.length / hold)
        self.mean, self.std, self.raw_low, self.raw_high = (
            torch.tensor(values, dtype=torch.float32, device=problem.device)
            for values in (space.mean, space.std, space.low, space.high)
        )
        self.low, self.high = (self.raw_low - self.mean) / self.std, (self.raw_high - self.mean) / self.std

    def clamp(self, knots: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(knots, self.low), self.high)

    def raw(self, knots: Tensor) -> Tensor:
        """[...,K,a] -> raw model actions [...,H,A] within the bounds."""
        action = (knots * self.std + self.mean).repeat_interleave(self.hold, dim=-2)[..., : self.length, :]
        action = torch.minimum(torch.maximum(action, self.raw_low), self.raw_high)
        return action.reshape(*knots.shape[:-2], self.problem.horizon, self.problem.space.width)

    def knots(self, action: Tensor) -> Tensor:
        """Raw model actions [...,H,A] -> [...,K,a], the mean over each hold; exact where it was held."""
        holds = self._holds((self._steps(action) - self.mean) / self.std)
        return self.clamp(torch.stack([steps.mean(-2) for steps in holds], dim=-2))

    def _steps(self, action: Tensor) -> Tensor:
        """[...,H,A] -> environment steps [...,H*block,a]."""
        return action.reshape(*action.shape[:-2], self.length, len(self.mean))

    def _holds(self, steps: Tensor) -> tuple[Tensor, ...]:
        """Environment steps [...,H*block,a] -> those of each knot; the last may be fewer."""
        return steps.split(self.hold, dim=-2)

    def begin(self, warm: Tensor | None) -> Tensor:
        """Warm start [B,H,A] or [B,W,H,A] -> knots [B,W,K,a]; the mean action where there is none."""
        if warm is None:
            return self.clamp(self.mean.new_zeros(self.problem.batch, 1, self.count, len(self.mean)))
        warm = warm.to(self.mean)
        wanted = (self.problem.batch, self.problem.horizon, self.problem.space.width)
        assert (len(warm), *warm.shape[-2:]) == wanted, f"warm start {tuple(warm.shape)} for (B, H, A) = {wanted}"
        return self.knots(warm.unsqueeze(1) if warm.ndim == 3 else warm)

    def noise(self, samples: int, beta: float = 0.0) -> Tensor:
        """[1,S,K,a]: one draw for all environments."""
        shape = (1, samples, len(self.mean), self.count)
        return coloured_noise(shape, beta, self.problem.generator, self.problem.device).transpose(-1, -2)

    def cost(self, knots: Tensor) -> Tensor:
        """[B,S,K,a] -> [B,S]; whatever is not a number is the worst."""
        return self._score(self.raw(knots))

    def _score(self, action: Tensor) -> Tensor:
        return self.problem.cost(action).float().nan_to_num(nan=torch.inf)

    def slope(self, knots: Tensor, loss: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """[B,S,K,a] -> costs [B,S] and their gradients [B,S,K,a], zero where they are not numbers.

        ``loss`` of raw actions [B,S,H,A] -> [B,S] takes the place of the problem's cost. Clipping at
        the bounds lets the gradient through, or an action at its bound could never leave it. Works under
        ``torch.inference_mode``, as long as the tensors that the cost closes over were made outside of it.

        Raises:
            InputError: the cost is not differentiable
        """
        with torch.inference_mode(False), torch.enable_grad():
            action = self.raw(knots.detach()).requires_grad_()
            cost = self._score(action) if loss is None else loss(action)
            gradient = None
            if cost.requires_grad:
                (gradient,) = torch.autograd.grad(cost.sum(), action, allow_unused=True)
        if gradient is None:
            raise InputError(
                "the cost has no gradient with respect to the actions; use a world and a cost that are differentiable, "
                "or a planner that samples, such as jepa.planning.CEM"
            )
        holds = self._holds(self._steps(gradient) * self.std)
        return cost.detach(), torch.stack([steps.sum(-2) for steps in holds], dim=-2).nan_to_num(0.0, 0.0, 0.0)
