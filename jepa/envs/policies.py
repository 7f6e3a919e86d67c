"""Policies that collect data without a model: chance, smooth chance, and scripts that touch what can be touched.

Every policy is built from a task and a generator, acts for all B environments at once, and returns raw actions.
The scripts read the privileged state, as an experimenter would.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from jepa.envs.wander import Wander
from jepa.errors import InputError
from jepa.schema import ActionSpec, Policy, Sample, Task


def _bounds(space: ActionSpec) -> tuple[Tensor, Tensor]:
    """Low and high [a].

    Raises:
        InputError: a bound is infinite, so there is nothing to be uniform over.
    """
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    if not bool(torch.isfinite(torch.cat([low, high])).all()):
        raise InputError(f"random actions need finite bounds, were given {space.low} to {space.high}; clip the actions")
    return low, high


class RandomPolicy:
    """Uniform in the bounds of the action.

    Args:
        task: the environments.
        generator: the source of randomness.
        hold: environment steps for which one action is kept.
    """

    def __init__(self, task: Task, generator: torch.Generator, hold: int = 1) -> None:
        self.low, self.high = _bounds(task.specs.action)
        self.num, self.generator, self.hold = task.num, generator, hold
        self._action = self._draw()
        self._age = torch.full((task.num,), hold)

    def _draw(self) -> Tensor:
        chance = torch.rand(self.num, len(self.low), generator=self.generator)
        return self.low + (self.high - self.low) * chance

    def act(self, sample: Sample) -> Tensor:
        due = self._age >= self.hold
        self._action = torch.where(due[:, None], self._draw(), self._action)
        self._age = torch.where(due, 1, self._age + 1)
        return self._action.clone()

    def reset(self, done: Tensor) -> None:
        self._age = torch.where(done, self.hold, self._age)


class SmoothRandomPolicy:
    """Ornstein-Uhlenbeck noise that explores in long strokes, clipped to the bounds.

    In units of half the range, the stationary standard deviation is ``spread``; the correlation of two actions
    that are k steps apart is exp(-k / correlation).

    Args:
        task: the environments.
        generator: the source of randomness.
        correlation: steps after which the noise has forgotten its past to 1/e.
        spread: standard deviation, in halves of the range.
    """

    def __init__(
        self, task: Task, generator: torch.Generator, correlation: float = 10.0, spread: float = 0.6
    ) -> None:
        if correlation <= 0:
            raise InputError(f"correlation was given {correlation}; it takes a positive number of steps")
        low, high = _bounds(task.specs.action)
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.generator, self.spread, self.keep = generator, spread, math.exp(-1 / correlation)
        self._noise = self._fresh(task.num)

    def _fresh(self, num: int) -> Tensor:
        return torch.randn(num, len(self.half), generator=self.generator)

    def act(self, sample: Sample) -> Tensor:
        self._noise = self.keep * self._noise + math.sqrt(1 - self.keep**2) * self._fresh(len(self._noise))
        return self.middle + self.half * (self.spread * self._noise).clamp(-1, 1)

    def reset(self, done: Tensor) -> None:
        self._noise = torch.where(done[:, None], self._fresh(len(self._noise)), self._noise)


class ContactPlay:
    """PushT: go beside the block, push through it, go to another side, with noise.

    The action is the position to go to, given as the agent's position plus a bounded move towards the way-point.

    Args:
        task: the environments; the state is agent xy, block xy, angle.
        generator: the source of randomness.
        reach: longest distance of the commanded position from the agent, in pixels of the 512-pixel arena.
        noise: standard deviation of the commanded position, in pixels.
        patience: steps after which a way-point is given up.
    """

    AWAY = 110.0  # pixels from the block's origin where a push begins; the T extends no farther than 120
    NEAR = 25.0  # a way-point closer than this is reached

    def __init__(
        self, task: Task, generator: torch.Generator, reach: float = 60.0, noise: float = 8.0, patience: int = 25
    ) -> None:
        if task.specs.observation.state_names[:4] != ("agent_x", "agent_y", "block_x", "block_y"):
            raise InputError(f"ContactPlay plays PushT, was given {task.specs.evaluation.env}; use SmoothRandomPolicy")
        self.space, self.generator = task.specs.action, generator
        self.reach, self.noise, self.patience = reach, noise, patience
        self._pushing = torch.ones(task.num, dtype=torch.bool)
        self._age = torch.full((task.num,), patience)  # give up at once: draws the first side
        self._side = torch.zeros(task.num)
        self._offset = torch.zeros(task.num, 2)

    def act(self, sample: Sample) -> Tensor:
        assert sample.state is not None, "ContactPlay reads the privileged state"
        agent, block = sample.state[:, -1, :2], sample.state[:, -1, 2:4]
        reached = (self._waypoint(block) - agent).norm(dim=1) < self.NEAR
        self._advance(reached | (self._age >= self.patience))
        move = self._waypoint(block) - agent
        move = move * (self.reach / move.norm(dim=1, keepdim=True).clamp(min=self.reach))
        return self.space.clip(agent + move + self.noise * torch.randn(agent.shape, generator=self.generator))

    def _waypoint(self, block: Tensor) -> Tensor:
        """Beside the block while approaching, beyond it on the other side while pushing [B,2]."""
        beside = self.AWAY * torch.stack([self._side.cos(), self._side.sin()], dim=1)
        return self.space.clip(block + torch.where(self._pushing[:, None], self._offset - 0.5 * beside, beside))

    def _advance(self, over: Tensor) -> None:
        """Approach -> push; push -> approach from a new side, aimed beside the centre so that the block turns."""
        again = over & self._pushing
        side = 2 * math.pi * torch.rand(len(over), generator=self.generator)
        offset = 40 * torch.randn(len(over), 2, generator=self.generator)
        self._side = torch.where(again, side, self._side)
        self._offset = torch.where(again[:, None], offset, self._offset)
        self._pushing = self._pushing ^ over
        self._age = torch.where(over, 0, self._age + 1)

    def reset(self, done: Tensor) -> None:
        self._pushing = self._pushing | done
        self._age = torch.where(done, self.patience, self._age)


class DoNothing:
    """The action that leaves the environment as it is: the floor of every evaluation.

    Args:
        task: the environments; they know what idling means (zero force, or the present position).
        generator: not used; every policy of this module is built alike.
    """

    def __init__(self, task: Task, generator: torch.Generator | None = None) -> None:
        self._idle = task.idle

    def act(self, sample: Sample) -> Tensor:
        return self._idle(sample)

    def reset(self, done: Tensor) -> None:
        """Nothing is remembered."""


SCRIPTS: dict[str, Callable[[Task, torch.Generator], Policy]] = {
    "random": RandomPolicy,
    "smooth": SmoothRandomPolicy,
    "wander": Wander,
    "contact": ContactPlay,
    "idle": DoNothing,
}
