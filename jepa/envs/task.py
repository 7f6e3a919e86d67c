"""Environments as tasks: B of them are reset to starts and goals, stepped together, and speak in samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs import two_rooms
from jepa.envs.adapter import Moment, Traits
from jepa.envs.pool import Pool
from jepa.envs.two_rooms_env import LAYOUTS
from jepa.errors import InputError, check_choice
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Outcome, Sample, Specs


class AdapterTask:
    """B environments behind adapters.

    Args:
        pool: the environments.
        num: B.
        size: height and width of the frames in pixels.
        evaluation: how to make this task again.
    """

    def __init__(self, pool: Pool, num: int, size: int, evaluation: EvalSpec) -> None:
        self.pool, self.num = pool, num
        self.traits = pool.traits
        self.specs = _specs(self.traits, size, evaluation)
        self._present: list[Moment] = []
        self._goals: list[Moment] = []

    def reset(
        self,
        seed: int | None = None,
        state: Tensor | None = None,
        goal: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Sample:
        """See :class:`jepa.schema.Task`."""
        width = len(self.traits.state_names)
        starts, ends = _states(state, self.num, width, "state"), _states(goal, self.num, width, "goal")
        chosen = _chosen(mask, self.num, begun=bool(self._present))
        begun = self.pool.reset(
            {i: (None if seed is None else seed + i, _row(starts, i), _row(ends, i)) for i in chosen}
        )
        self._present = [begun[i][0] if i in begun else self._present[i] for i in range(self.num)]
        self._goals = [begun[i][1] if i in begun else self._goals[i] for i in range(self.num)]
        self._goal = _sample(self._goals)
        return self._sample()

    def step(self, action: Tensor) -> Outcome:
        """See :class:`jepa.schema.Task`. An environment that ended keeps its last frame and earns nothing."""
        assert self._present, "reset the task before its first step"
        rows = _actions(action, self.num, self.specs.action)
        alive = {i: rows[i] for i, moment in enumerate(self._present) if not moment.ended}
        moved = self.pool.step(alive)
        self._present = [moved[i] if i in moved else replace(old, reward=0.0) for i, old in enumerate(self._present)]
        sample = self._sample()
        assert sample.state is not None and self._goal.state is not None
        return Outcome(
            sample,
            reward=torch.tensor([moment.reward for moment in self._present], dtype=torch.float32),
            terminated=torch.tensor([moment.ended for moment in self._present]),
            success=self.success(sample.state[:, 0], self._goal.state[:, 0]),
        )

    def success(self, state: Tensor, goal: Tensor) -> Tensor:
        """Privileged states and goals [B,X] -> bool [B]."""
        return self.traits.success(state, goal)

    def idle(self, sample: Sample) -> Tensor:
        """The raw action [B,a] that leaves the present as it is."""
        return self.traits.idle(sample)

    def close(self) -> None:
        self.pool.close()

    def _sample(self) -> Sample:
        return replace(_sample(self._present), goal=self._goal)


def _sample(moments: list[Moment]) -> Sample:
    """Moments of B environments -> a sample with T=1."""
    frames, states, proprios = (
        torch.from_numpy(np.stack([getattr(moment, name) for moment in moments]))[:, None]
        for name in ("frame", "state", "proprio")
    )
    return Sample(video=frames, state=states, proprio=proprios if proprios.shape[-1] else None)


def _specs(traits: Traits, size: int, evaluation: EvalSpec) -> Specs:
    width, proprio = len(traits.low), traits.proprio_width
    return Specs(
        ActionSpec(traits.low, traits.high, mean=(0.0,) * width, std=(1.0,) * width, choices=traits.choices),
        ObservationSpec(
            size,
            size,
            proprio_mean=(0.0,) * proprio,
            proprio_std=(1.0,) * proprio,
            state_names=traits.state_names,
        ),
        evaluation,
    )


def _chosen(mask: Tensor | None, num: int, begun: bool) -> list[int]:
    """Numbers of the environments to reset."""
    if mask is None:
        return list(range(num))
    assert mask.shape == (num,), f"mask wants shape {(num,)}, was given {tuple(mask.shape)}"
    assert begun or bool(mask.all()), "the first reset begins every environment"
    return [int(i) for i in mask.nonzero()[:, 0]]


def _states(state: Tensor | None, num: int, width: int, name: str) -> NDArray[np.float32] | None:
    if state is None:
        return None
    if tuple(state.shape) != (num, width) or not bool(torch.isfinite(state).all()):
        raise InputError(f"reset was given a {name} of shape {tuple(state.shape)}; expected finite {(num, width)}")
    return state.detach().cpu().numpy().astype(np.float32)


def _row(values: NDArray[np.float32] | None, i: int) -> NDArray[np.float32] | None:
    return None if values is None else values[i]


def _actions(action: Tensor, num: int, space: ActionSpec) -> NDArray[np.float32]:
    wanted = (num, space.env_width)
    if tuple(action.shape) != wanted or not bool(torch.isfinite(action).all()):
        raise InputError(f"step was given actions of shape {tuple(action.shape)}; expected finite {wanted}")
    if space.choices and not torch.equal(space.clip(action), action):
        raise InputError(
            f"step was given actions that are no choices; expected one-hot vectors of width {space.choices}, such as "
            "jepa.schema.ActionSpec.clip makes"
        )
    return action.detach().cpu().numpy().astype(np.float32)


class TwoRoomsTask:
    """B Two Rooms in one set of arrays. Nothing ends an episode.

    Args:
        num: B.
        size: height and width of the frames in pixels.
        layout: ``fixed`` (wall x = 0.5, door y = 0.35) or ``random`` (a new wall and door every episode).
        opposite: start and goal lie in opposite rooms.
        evaluation: how to make this task again.
    """

    def __init__(
        self,
        num: int = 1,
        size: int = 64,
        layout: str = "fixed",
        opposite: bool = True,
        evaluation: EvalSpec = EvalSpec(),
    ) -> None:
        check_choice("layout", layout, LAYOUTS)
        self.num, self.size, self.layout, self.opposite = num, size, layout, opposite
        traits = Traits((-1.0,) * 2, (1.0,) * 2, two_rooms.STATE_NAMES, 0, self.success, self.idle)
        self.specs = _specs(traits, size, evaluation)
        self._rng = [np.random.default_rng() for _ in range(num)]
        self._state, self._ends = np.zeros((2, num, 4), dtype=np.float32)
        self._rooms = np.zeros((num, 3, size, size), dtype=np.uint8)
        self._goal: Sample | None = None

    def reset(
        self,
        seed: int | None = None,
        state: Tensor | None = None,
        goal: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Sample:
        """See :class:`jepa.schema.Task`. A given goal must name the wall and door of its given start."""
        starts, ends = _states(state, self.num, 4, "state"), _states(goal, self.num, 4, "goal")
        chosen = _chosen(mask, self.num, begun=self._goal is not None)
        for i in chosen:
            if seed is not None:
                self._rng[i] = np.random.default_rng(seed + i)
            self._state[i], self._ends[i] = self._draw(i, _row(starts, i), _row(ends, i))
        self._rooms[chosen] = two_rooms.render_rooms(self._state[chosen, 2], self._state[chosen, 3], self.size)
        self._goal = self._see(self._ends)
        return replace(self._see(self._state), goal=self._goal)

    def _draw(
        self, i: int, start: NDArray[np.float32] | None, end: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        given = [row for row in (start, end) if row is not None]
        if len(given) == 2 and not np.allclose(given[0][2:], given[1][2:], atol=1e-5):
            walls = [tuple(round(float(v), 4) for v in row[2:]) for row in given]
            raise InputError(f"the start has (wall_x, door_y) = {walls[0]}, the goal {walls[1]}; give both one room")
        wall, door = (given[0][2], given[0][3]) if given else (None, None)
        place = [None if row is None else row[:2] for row in (start, end)]
        return two_rooms.draw(self._rng[i], self.layout, self.opposite, place[0], place[1], wall, door)

    def step(self, action: Tensor) -> Outcome:
        """See :class:`jepa.schema.Task`. The reward is 1 where the goal is reached and else 0."""
        assert self._goal is not None, "reset the task before its first step"
        self._state[:, :2] = two_rooms.move(self._state, _actions(action, self.num, self.specs.action))
        reached = torch.from_numpy(two_rooms.success(self._state, self._ends))
        sample = replace(self._see(self._state), goal=self._goal)
        return Outcome(sample, reached.float(), torch.zeros(self.num, dtype=torch.bool), reached)

    def _see(self, state: NDArray[np.float32]) -> Sample:
        frames = two_rooms.render_dots(self._rooms, state[:, :2])
        return Sample(video=torch.from_numpy(frames)[:, None], state=torch.from_numpy(state.copy())[:, None])

    def success(self, state: Tensor, goal: Tensor) -> Tensor:
        """Privileged states and goals [B,4] -> bool [B]: within 0.06 of the goal."""
        return torch.linalg.vector_norm(state[..., :2] - goal[..., :2], dim=-1) < two_rooms.RADIUS

    def idle(self, sample: Sample) -> Tensor:
        """The raw action [B,2] that moves nothing: zero."""
        assert sample.video is not None, "idle needs the present"
        return torch.zeros(len(sample.video), 2)

    def close(self) -> None:
        """Nothing is held."""
