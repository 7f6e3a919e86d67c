"""What one simulator must offer to be used as a start-and-goal task, and what the simulators share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jepa.errors import InputError
from jepa.schema import Sample

Vector = NDArray[np.float32]
LARGEST_MENU = 1024  # choices; more are no menu but a space to move in


@dataclass(frozen=True)
class Moment:
    """What one environment shows now."""

    frame: NDArray[np.uint8]  # [3,S,S]
    state: Vector  # [X] privileged
    proprio: Vector  # [P]
    reward: float = 0.0  # of the step that led here
    ended: bool = False


@dataclass(frozen=True)
class Traits:
    """What is true of every environment of a kind. Travels between processes."""

    low: tuple[float, ...]  # bounds of the raw action [a], a one-hot vector where there are choices
    high: tuple[float, ...]
    state_names: tuple[str, ...]
    proprio_width: int
    success: Callable[[Tensor, Tensor], Tensor]  # states and goals [B,X] -> bool [B]
    idle: Callable[[Sample], Tensor] = field(repr=False)  # the present -> the action [B,a] that moves nothing
    choices: int = 0  # of a discrete action; 0 where actions are continuous


class Adapter(Protocol):
    """One environment that is reset to a start and a goal and speaks in moments."""

    traits: Traits

    def reset(self, seed: int | None, state: Vector | None, goal: Vector | None) -> tuple[Moment, Moment]:
        """Begin an episode; returns the present and the goal. What is None is drawn from the seed, or else from
        where the generator stands."""

    def step(self, action: Vector) -> Moment:
        """One raw action [a]."""

    def close(self) -> None: ...


class Placeable:
    """Base of the simulators that can be put at any state: the goal image is the goal state, rendered.

    A child sets ``traits`` and says how to draw, place, look and advance.
    """

    traits: Traits
    env: gymnasium.Env[Any, Any]

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def draw(self) -> tuple[Vector, Vector]:
        """A start and a goal state [X], from ``self.rng``."""
        raise NotImplementedError

    def place(self, state: Vector, goal: Vector) -> None:
        """Put the simulator at rest in a state [X]; ``goal`` is what its own reward, if any, should be about."""
        raise NotImplementedError

    def look(self, reward: float = 0.0, ended: bool = False) -> Moment:
        """The present."""
        raise NotImplementedError

    def advance(self, action: Vector) -> tuple[float, bool]:
        """One step; the reward, and whether the episode is over."""
        raise NotImplementedError

    def reset(self, seed: int | None, state: Vector | None, goal: Vector | None) -> tuple[Moment, Moment]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        start, end = self.draw()
        start, end = (drawn if given is None else given for drawn, given in ((start, state), (end, goal)))
        self.place(end, end)
        wanted = self.look()
        self.place(start, end)
        return self.look(), wanted

    def step(self, action: Vector) -> Moment:
        return self.look(*self.advance(action))

    def close(self) -> None:
        self.env.close()


def shrink(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """RGB [h,w,3] -> [3,size,size], averaged over area."""
    if image.shape[:2] != (size, size):
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def box_bounds(env_id: str, space: gymnasium.Space[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Flat low and high of a continuous action space.

    Raises:
        InputError: the actions are not continuous.
    """
    if not isinstance(space, gymnasium.spaces.Box):
        raise InputError(f"{env_id} takes {type(space).__name__} actions; choose one with Box or discrete actions")
    low, high = (tuple(float(v) for v in np.ravel(bound)) for bound in (space.low, space.high))
    return low, high


def discrete_actions(env_id: str, space: gymnasium.Space[Any]) -> list[Any]:
    """Every action of a discrete space, in its order and as the environment takes it; none for other spaces.

    A choice of a MultiDiscrete or MultiBinary space is one combination of all its entries, the last running fastest.

    Raises:
        InputError: there is only one action, or there are more than LARGEST_MENU.
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        sizes, start = np.asarray(space.n), space.start
    elif isinstance(space, gymnasium.spaces.MultiDiscrete):
        sizes, start = space.nvec, space.start
    elif isinstance(space, gymnasium.spaces.MultiBinary):
        sizes, start = np.full(space.shape, 2), 0
    else:
        return []
    count = math.prod(sizes.ravel().tolist())
    if not 2 <= count <= LARGEST_MENU:
        raise InputError(f"{env_id} has {count} discrete actions; choose an environment with 2 to {LARGEST_MENU}")
    return [(np.reshape(one, sizes.shape) + start).astype(space.dtype) for one in np.ndindex(*sizes.ravel())]


def make_env(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """``gymnasium.make`` without a time limit (budgets are the caller's) and without the checker.

    Raises:
        InputError: the environment refuses the options, or a package that it needs is missing.
    """
    try:
        return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **options)
    except (ImportError, gymnasium.error.Error, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{env_id} cannot be made with {options}: {reason}") from error
