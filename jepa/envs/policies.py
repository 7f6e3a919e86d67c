"""Policies that collect data without a model: chance, smooth chance, and scripts that touch what can be touched.

Every policy is built from a task and a generator, acts for all B environments at once, and returns raw actions.
The scripts read the privileged state, as an experimenter would.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jepa.envs import metaworld
from jepa.envs.cube_oracle import CubeOracle
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
    """Uniform in the bounds of the action; any of the choices of a discrete one.

    Args:
        task: the environments.
        generator: the source of randomness.
        hold: environment steps for which one action is kept.
    """

    def __init__(self, task: Task, generator: torch.Generator, hold: int = 1) -> None:
        self.space = task.specs.action
        self.low, self.high = _bounds(self.space)
        self.num, self.generator, self.hold = task.num, generator, hold
        self._action = self._draw()
        self._age = torch.full((task.num,), hold)

    def _draw(self) -> Tensor:
        chance = torch.rand(self.num, len(self.low), generator=self.generator)
        return self.space.clip(self.low + (self.high - self.low) * chance)

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
    that are k steps apart is exp(-k / correlation). Of discrete actions, the one whose noise is greatest is taken, so
    that a choice lasts.

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
        self.space = task.specs.action
        low, high = _bounds(self.space)
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.generator, self.spread, self.keep = generator, spread, math.exp(-1 / correlation)
        self._noise = self._fresh(task.num)

    def _fresh(self, num: int) -> Tensor:
        return torch.randn(num, len(self.half), generator=self.generator)

    def act(self, sample: Sample) -> Tensor:
        self._noise = self.keep * self._noise + math.sqrt(1 - self.keep**2) * self._fresh(len(self._noise))
        return self.space.clip(self.middle + self.half * self.spread * self._noise)

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


class Expert:
    """MetaWorld's own policy heads for the goal of the episode, and from there for one random point after another.

    Alone it would show one stroke and then stand still. What planning needs besides is in the points, with which half
    of the episodes begin, and in the noise: its strength is drawn per episode, from none to as strong as the policy
    itself, and it drives the gripper too.

    Args:
        task: the environments; the state is MetaWorld's.
        generator: the source of randomness.
        noise: greatest strength of the noise, in standard deviations of SmoothRandomPolicy's.
        correlation: steps after which the noise has forgotten its past to 1/e.
        patience: steps after which a point is given up; the goal is not.
        goals: probability that an episode heads for its goal first.
    """

    NEAR = 0.05  # metres: a point closer than this is reached; the policy creeps up to it
    TABLE = ((-0.2, 0.45, 0.06), (0.2, 0.9, 0.35))  # metres: where the points lie, wider than the box of the goals

    def __init__(
        self,
        task: Task,
        generator: torch.Generator,
        noise: float = 1.0,
        correlation: float = 5.0,
        patience: int = 40,
        goals: float = 0.5,
    ) -> None:
        evaluation = task.specs.evaluation
        if task.specs.observation.state_names[:4] != ("hand_x", "hand_y", "hand_z", "gripper"):
            raise InputError(f"Expert plays MetaWorld, was given {evaluation.env}; use SmoothRandomPolicy")
        self.space, self.generator, self.noise = task.specs.action, generator, noise
        self.patience, self.goals = patience, goals
        self._policy = metaworld.scripted(evaluation.env_options["task"])
        self._smooth = SmoothRandomPolicy(task, generator, correlation)
        self._strength, self._age = torch.zeros(task.num, 1), torch.zeros(task.num)
        self._point = torch.zeros(task.num, 3)
        self.reset(torch.ones(task.num, dtype=torch.bool))

    def reset(self, done: Tensor) -> None:
        self._smooth.reset(done)
        self._strength = torch.where(done[:, None], self.noise * self._chance(1), self._strength)
        self._point[done] = torch.nan  # the goal, which the next sample shows
        first = torch.where(self._chance(1)[:, 0] < self.goals, -torch.inf, self.patience)  # or given up at once
        self._age = torch.where(done, first, self._age)

    def act(self, sample: Sample) -> Tensor:
        assert sample.state is not None and sample.goal is not None, "Expert reads the privileged state and goal"
        state, goal = sample.state[:, -1], sample.goal.state[:, -1]
        self._aim(state[:, metaworld.HAND], goal[:, metaworld.HAND])
        rows = zip(state.numpy(), self._point.numpy())
        action = torch.from_numpy(np.stack([metaworld.expert_action(self._policy, *row) for row in rows]))
        return self.space.clip(action + self._strength * self._smooth.act(sample))

    def _aim(self, hand: Tensor, goal: Tensor) -> None:
        """Head for the goal first, and for another point once the last one is reached or given up."""
        self._point = torch.where(self._point.isnan(), goal, self._point)
        over = ((hand - self._point).norm(dim=1) < self.NEAR) | (self._age >= self.patience)
        low, high = torch.tensor(self.TABLE)
        self._point = torch.where(over[:, None], low + (high - low) * self._chance(3), self._point)
        self._age = torch.where(over, 0, self._age + 1)

    def _chance(self, width: int) -> Tensor:
        return torch.rand(len(self._point), width, generator=self.generator)


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
    "oracle": CubeOracle,
    "expert": Expert,
    "idle": DoNothing,
}
