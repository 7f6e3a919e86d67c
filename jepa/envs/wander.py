"""The script that records Two Rooms: it wanders, leans on walls, and now and then heads for the other room."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.envs import two_rooms
from jepa.errors import InputError
from jepa.schema import Sample, Task

BEHIND = 0.12  # how far behind the wall the points lie that it heads for


class Wander:
    """Smooth random headings with a will of its own, never towards a goal.

    What planning needs is in what the script tries: it keeps pushing against walls and slides along them, so that the
    model learns that they stop it; it heads for points behind the wall, some through the door and most not; its
    actions fill the whole box, corners included, because planners love corners.

    Args:
        task: the environments; their state is x, y and where wall and door are.
        generator: the source of randomness.
        turn: range of the standard deviation, drawn per episode, of the change of heading per step, in radians.
        speed: the length of an action is ``speed`` times the square root of a uniform number, clipped to the box.
        switch: probability per step of choosing anew whether to wander or to head for the other room.
        seek: probability that such a choice is the other room.
        door: probability that the point to head for lies behind the door; elsewhere its height is uniform.
        bounce: probability per step in contact of a new heading, while wandering.
    """

    def __init__(
        self,
        task: Task,
        generator: torch.Generator,
        turn: tuple[float, float] = (0.1, 0.6),
        speed: float = 1.3,
        switch: float = 0.06,
        seek: float = 0.4,
        door: float = 0.3,
        bounce: float = 0.2,
    ) -> None:
        if task.specs.observation.state_names != two_rooms.STATE_NAMES:
            raise InputError(f"Wander plays Two Rooms, was given {task.specs.evaluation.env}; use SmoothRandomPolicy")
        self.generator, self.turn, self.speed = generator, turn, speed
        self.switch, self.seek, self.door, self.bounce = switch, seek, door, bounce
        self._heading, self._turn = torch.zeros(task.num), torch.zeros(task.num)
        self._target, self._seeking = torch.zeros(task.num, 2), torch.zeros(task.num, dtype=torch.bool)
        self._expected = torch.zeros(task.num, 2)
        self.reset(torch.ones(task.num, dtype=torch.bool))

    def reset(self, done: Tensor) -> None:
        low, high = self.turn
        self._heading = torch.where(done, self._anywhere(), self._heading)
        self._turn = torch.where(done, low + (high - low) * self._chance(), self._turn)
        self._seeking &= ~done
        self._expected[done] = torch.nan

    def act(self, sample: Sample) -> Tensor:
        assert sample.state is not None, "Wander reads the privileged state"
        state = sample.state[:, -1]
        self._choose(state)
        touched = (state[:, :2] - self._expected).abs().amax(dim=1) > two_rooms.GAP / 2  # false after a reset: nan
        self._steer(state[:, :2], touched & ~self._seeking & (self._chance() < self.bounce))
        length = self.speed * self._chance().sqrt()
        action = (length[:, None] * torch.stack([self._heading.cos(), self._heading.sin()], dim=1)).clamp(-1, 1)
        self._expected = state[:, :2] + two_rooms.STEP * action / action.norm(dim=1, keepdim=True).clamp(min=1)
        return action

    def _choose(self, state: Tensor) -> None:
        """Wander, or head for a point behind the wall until it is crossed."""
        wall, door = state[:, 2], state[:, 3]
        side = torch.where(state[:, 0] < wall, -1.0, 1.0)
        anew = self._chance() < self.switch
        through = door + 0.2 * (self._chance() - 0.5)
        height = torch.where(self._chance() < self.door, through, self._chance())
        point = torch.stack([wall - BEHIND * side, height], dim=1)
        self._target = torch.where(anew[:, None], point, self._target)
        self._seeking = torch.where(anew, self._chance() < self.seek, self._seeking)
        self._seeking &= (self._target[:, 0] - wall) * side < 0

    def _steer(self, position: Tensor, bounced: Tensor) -> None:
        """Turn a little at random, half way to the target where there is one, or anywhere on a bounce."""
        towards = torch.atan2(self._target[:, 1] - position[:, 1], self._target[:, 0] - position[:, 0])
        error = torch.remainder(towards - self._heading + math.pi, 2 * math.pi) - math.pi
        noise = self._turn * torch.randn(len(position), generator=self.generator)
        steered = self._heading + noise + torch.where(self._seeking, 0.5 * error, 0.0)
        self._heading = torch.where(bounced, self._anywhere(), steered)

    def _chance(self) -> Tensor:
        return torch.rand(len(self._heading), generator=self.generator)

    def _anywhere(self) -> Tensor:
        return 2 * math.pi * self._chance()
