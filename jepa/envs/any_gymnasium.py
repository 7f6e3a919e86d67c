"""Any gymnasium environment with pixels, as it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jepa.envs.adapter import Moment, Traits, Vector, box_bounds, discrete_actions, make_env, shrink
from jepa.errors import InputError, check_choice
from jepa.schema import Sample


def near(state: Tensor, goal: Tensor, tolerance: float) -> Tensor:
    """Every number of the state is within the tolerance of the goal's; never true where there is no state."""
    return ((state - goal).abs() < tolerance).all(dim=-1) & (state.shape[-1] > 0)


def zeros(sample: Sample, width: int) -> Tensor:
    """Zero action [B,width]."""
    assert sample.video is not None, "idle needs the present"
    return torch.zeros(len(sample.video), width)


def always(sample: Sample, number: int, count: int) -> Tensor:
    """The same one of ``count`` choices in all environments, one-hot [B,count]."""
    assert sample.video is not None, "idle needs the present"
    return F.one_hot(torch.full((len(sample.video),), number), count).float()


class AnyGymnasium:
    """An environment that we know nothing about.

    It cannot be put at a state: a goal is what another reset shows. The numbers in its observation are its
    privileged state; those under ``proprio_key`` are its proprioception. A discrete action is a choice, one-hot in
    samples (``ActionSpec.choices``); the environment is given the action that the choice stands for.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
        pixels: ``render`` takes frames from ``render()``, ``observation`` the first image of the observation.
        proprio_key: entry of a Dict observation that is proprioception; none if empty.
        tolerance: the goal is reached when every number of the state is closer than this to the goal's.
        make_options: further options for ``gymnasium.make``.
        idle: number of the discrete action that counts as doing nothing, from 0 in the order of the space. Nothing
            tells which one that is, or that there is one: Atari's is the first, CartPole has none.
    """

    def __init__(
        self,
        env_id: str,
        size: int,
        pixels: str = "render",
        proprio_key: str = "",
        tolerance: float = 0.05,
        make_options: Mapping[str, Any] | None = None,
        idle: int = 0,
    ) -> None:
        check_choice("pixels", pixels, ("render", "observation"))
        self.env_id, self.size, self.pixels, self.proprio_key = env_id, size, pixels, proprio_key
        render = {"render_mode": "rgb_array"} if pixels == "render" else {}
        self.env = make_env(env_id, **render, **(make_options or {}))
        self.menu = discrete_actions(env_id, self.env.action_space)
        count = len(self.menu)
        low, high = ((0.0,) * count, (1.0,) * count) if count else box_bounds(env_id, self.env.action_space)
        if not 0 <= idle < max(1, count):
            raise InputError(f"{env_id} was given idle={idle}; expected 0 to {max(1, count) - 1}")
        self.rng = np.random.default_rng()
        observation, _ = self.env.reset(seed=0)
        self.images = [key for key, value in _entries(observation).items() if _is_image(value)]
        self._check(observation)
        names = tuple(f"{key}_{i}" for key, value in self._numbers(observation).items() for i in range(value.size))
        self.traits = Traits(
            low,
            high,
            names,
            self._proprio(observation).size,
            partial(near, tolerance=tolerance),
            partial(always, number=idle, count=count) if count else partial(zeros, width=len(low)),
            count,
        )

    def _check(self, observation: Any) -> None:
        if self.pixels == "observation" and not self.images:
            raise InputError(f"{self.env_id} observes no image; choose pixels=render")
        if self.pixels == "render" and "rgb_array" not in self.env.metadata.get("render_modes", ()):
            raise InputError(f"{self.env_id} cannot render to an array; choose pixels=observation")
        if self.proprio_key and self.proprio_key not in self._numbers(observation):
            known = ", ".join(self._numbers(observation)) or "none"
            raise InputError(f"{self.env_id} observes no {self.proprio_key!r}; choose proprio_key from: {known}")

    def reset(self, seed: int | None, state: Vector | None, goal: Vector | None) -> tuple[Moment, Moment]:
        if state is not None or goal is not None:
            raise InputError(f"{self.env_id} cannot be put at a state; reset it without state and goal")
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        goal_seed, start_seed = (int(s) for s in self.rng.integers(2**31, size=2))
        wanted = self._moment(self.env.reset(seed=goal_seed)[0])
        return self._moment(self.env.reset(seed=start_seed)[0]), wanted

    def step(self, action: Vector) -> Moment:
        space = self.env.action_space
        given = self.menu[action.argmax()] if self.menu else action.reshape(space.shape).astype(space.dtype)
        observation, reward, terminated, truncated, _ = self.env.step(given)
        return self._moment(observation, float(reward), bool(terminated or truncated))

    def close(self) -> None:
        self.env.close()

    def _moment(self, observation: Any, reward: float = 0.0, ended: bool = False) -> Moment:
        image = self.env.render() if self.pixels == "render" else _entries(observation)[self.images[0]]
        numbers = [np.ravel(value) for value in self._numbers(observation).values()]
        state = np.concatenate([*numbers, np.zeros(0)]).astype(np.float32)
        return Moment(shrink(np.asarray(image), self.size), state, self._proprio(observation), reward, ended)

    def _numbers(self, observation: Any) -> dict[str, NDArray[Any]]:
        return {key: value for key, value in _entries(observation).items() if key not in self.images}

    def _proprio(self, observation: Any) -> Vector:
        value = self._numbers(observation)[self.proprio_key] if self.proprio_key else np.zeros(0)
        return np.ravel(value).astype(np.float32)


def _entries(observation: Any) -> dict[str, NDArray[Any]]:
    """A flat view: a Dict observation by key, anything else as one entry."""
    if isinstance(observation, Mapping):
        return {key: np.asarray(value) for key, value in observation.items()}
    return {"observation": np.asarray(observation)}


def _is_image(value: NDArray[Any]) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3
