"""The space that sampling planners search: held, normalised environment actions, and the noise that explores it.

*Knots* ``[B,S,K,a]`` are normalised environment actions, each held for ``hold`` environment steps, whatever the block
of a model step. The bounds are the raw bounds mapped through the same ActionSpec. Some published planners clamp
normalised candidates with raw bounds, which takes the large actions away wherever the standard deviation of the
actions is below one.
"""

from __future__ import annotations

import math

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
        steps = (action.reshape(*action.shape[:-2], self.length, len(self.mean)) - self.mean) / self.std
        holds = [steps[..., start : start + self.hold, :].mean(-2) for start in range(0, self.length, self.hold)]
        return self.clamp(torch.stack(holds, dim=-2))

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
        return self.problem.cost(self.raw(knots)).float().nan_to_num(nan=torch.inf)
