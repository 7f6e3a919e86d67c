"""Policies that know nothing: what a planner must beat on the same pairs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jepa.schema import ActionSpec, Sample, Task


class RandomPolicy:
    """Uniform raw actions within the bounds; normal with the mean and standard deviation where a bound is infinite.

    Of discrete actions, any of the choices: one-hot.

    Args:
        space: one environment action
        seed: of the actions; they start anew when all environments are reset
    """

    def __init__(self, space: ActionSpec, seed: int = 0) -> None:
        self.space, width = replace(space, block=1), space.env_width
        self.low, self.high, self.mean, self.std = (
            torch.tensor(values[:width]) for values in (space.low, space.high, space.mean, space.std)
        )
        self.bounded = self.low.isfinite() & self.high.isfinite()
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)

    def act(self, sample: Sample) -> Tensor:
        shape = (len(sample.video), len(self.low))
        uniform = torch.rand(shape, generator=self.generator)
        normal = torch.randn(shape, generator=self.generator) * self.std + self.mean
        inside = torch.where(self.bounded, self.low + uniform * (self.high - self.low), normal)
        return self.space.clip(inside)

    def reset(self, done: Tensor) -> None:
        if done.all():
            self.generator.manual_seed(self.seed)


class IdlePolicy:
    """Does nothing, in the words of the task: zero is not idle where an action is a target position."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def act(self, sample: Sample) -> Tensor:
        return self.task.idle(sample)

    def reset(self, done: Tensor) -> None:
        """It has no past."""
