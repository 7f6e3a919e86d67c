"""The space that planners of discrete actions search: a menu of raw actions, and plans as numbers into it.

A discrete environment's menu is its own choices. A continuous one is planned for with a grid of its action space, so
that every world can be searched by a tree.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.schema import ActionSpec, Problem

LARGEST = 1024  # choices; more are a grid of too many dimensions


def menu_of(space: ActionSpec, levels: int) -> Tensor:
    """The environment actions to choose from, raw [n,a].

    Args:
        space: discrete, whose choices are the menu; or continuous
        levels: values per dimension of a grid over a continuous space, from bound to bound; where a bound is
            infinite, from two standard deviations below the mean to two above
    """
    if space.choices:
        return torch.eye(space.choices)
    count = levels**space.env_width
    if count > LARGEST:
        raise InputError(
            f"{levels} levels of {space.env_width} action dimensions are {count} choices, more than {LARGEST}; "
            "take fewer levels, or a planner of continuous actions such as jepa.planning.CEM"
        )
    edges = zip(space.low, space.high, space.mean, space.std)
    finite = [
        (low if math.isfinite(low) else mean - 2 * std, high if math.isfinite(high) else mean + 2 * std)
        for low, high, mean, std in edges
    ]
    axes = [torch.linspace(low, high, levels) for low, high in finite]
    return torch.cartesian_prod(*axes).reshape(count, -1)


class Choices:
    """Plans as numbers: ``index [...,K]`` names the menu entry that is held over each ``hold`` environment steps.

    Args:
        problem: action space, horizon H, batch B, device
        hold: environment steps for which a choice is held, within model steps and across them
        levels: of the grid over a continuous space
    """

    def __init__(self, problem: Problem, hold: int, levels: int) -> None:
        self.problem, self.hold = problem, hold
        self.length = problem.horizon * problem.space.block
        self.count = math.ceil(self.length / hold)
        self.menu = menu_of(problem.space, levels).to(problem.device)
        self._scale = (self.menu.amax(0) - self.menu.amin(0)).clamp_min(1e-12)

    @property
    def choices(self) -> int:
        return len(self.menu)

    def raw(self, index: Tensor) -> Tensor:
        """[...,K] -> raw model actions [...,H,A]."""
        action = self.menu[index].repeat_interleave(self.hold, dim=-2)[..., : self.length, :]
        return action.reshape(*index.shape[:-1], self.problem.horizon, self.problem.space.width)

    def index(self, action: Tensor) -> Tensor:
        """Raw model actions [...,H,A] -> [...,K], the entry that is nearest to the mean over each hold."""
        steps = action.to(self.menu).reshape(*action.shape[:-2], self.length, self.menu.shape[1])
        means = torch.stack([part.mean(-2) for part in steps.split(self.hold, dim=-2)], dim=-2)
        return ((means.unsqueeze(-2) - self.menu) / self._scale).square().sum(-1).argmin(-1)

    def begin(self, warm: Tensor | None) -> Tensor | None:
        """Warm start [B,H,A] or [B,W,H,A] -> [B,W,K]; None where there is none."""
        if warm is None:
            return None
        wanted = (self.problem.batch, self.problem.horizon, self.problem.space.width)
        assert (len(warm), *warm.shape[-2:]) == wanted, f"warm start {tuple(warm.shape)} for (B, H, A) = {wanted}"
        return self.index(warm.unsqueeze(1) if warm.ndim == 3 else warm)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers of [0,1) from the problem's generator."""
        return torch.rand(shape, generator=self.problem.generator, device=self.problem.device)

    def cost(self, index: Tensor) -> Tensor:
        """[B,S,K] -> [B,S]; whatever is not a number is the worst."""
        return self.problem.cost(self.raw(index)).float().nan_to_num(nan=torch.inf)


def check_menu(name: str, hold: int, levels: int) -> None:
    """InputError for settings that make no menu."""
    if hold < 1 or levels < 2:
        raise InputError(f"{name} was given hold={hold}, levels={levels}; expected hold >= 1 and levels >= 2")
