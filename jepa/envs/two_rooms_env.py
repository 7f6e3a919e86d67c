"""``jepa/TwoRooms-v0``: one environment of the vector core behind the gymnasium API."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from jepa.envs import two_rooms
from jepa.errors import InputError, check_choice, check_known

LAYOUTS = ("fixed", "random")
FACTORS = ("start", "goal", "wall", "door")


class TwoRoomsEnv(gymnasium.Env[dict[str, NDArray[np.uint8]], NDArray[np.float32]]):
    """Move a dot through a door to the position that the goal image shows.

    The observation holds ``pixels`` and ``goal``, uint8 [size,size,3]. The info holds the privileged ``state`` and
    ``goal_state`` (x, y, wall_x, door_y) and ``is_success``. The reward is 1 on reaching the goal, which ends the
    episode, and else 0.

    Args:
        layout: ``fixed`` (wall x = 0.5, door y = 0.35) or ``random`` (a new wall and door every episode).
        opposite: start and goal lie in opposite rooms.
        size: height and width of the image in pixels.
        render_mode: ``rgb_array`` or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, layout: str = "fixed", opposite: bool = True, size: int = 64, render_mode: str | None = None
    ) -> None:
        check_choice("layout", layout, LAYOUTS)
        self.layout, self.opposite, self.size, self.render_mode = layout, opposite, size, render_mode
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"pixels": image, "goal": image})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._state = self._goal = np.zeros(4, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: seeds the factors of variation.
            options: factors to fix: ``start`` and ``goal`` (x, y), ``wall`` (x), ``door`` (y).

        Raises:
            InputError: an unknown option, or a position in a wall.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        check_known("reset option", given, FACTORS)
        for name, width in (("start", (2,)), ("goal", (2,)), ("wall", ()), ("door", ())):
            if name in given and np.shape(given[name]) != width:
                raise InputError(f"reset option {name} was given {given[name]!r}; it takes {width or 'one'} number(s)")
        self._state, self._goal = two_rooms.draw(self.np_random, self.layout, self.opposite, **given)
        self._rooms = two_rooms.render_rooms(self._state[2:3], self._state[3:4], self.size)
        self._goal_image = self._image(self._goal)
        return self._observation(), self._info()

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[np.uint8]], float, bool, bool, dict[str, Any]]:
        position = two_rooms.move(self._state[None], np.asarray(action, dtype=np.float32)[None])[0]
        self._state = np.concatenate([position, self._state[2:]])
        info = self._info()
        return self._observation(), float(info["is_success"]), info["is_success"], False, info

    def render(self) -> NDArray[np.uint8] | None:
        return self._image(self._state) if self.render_mode == "rgb_array" else None

    def _image(self, state: NDArray[np.float32]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(two_rooms.render_dots(self._rooms, state[None, :2])[0].transpose(1, 2, 0))

    def _observation(self) -> dict[str, NDArray[np.uint8]]:
        return {"pixels": self._image(self._state), "goal": self._goal_image.copy()}

    def _info(self) -> dict[str, Any]:
        reached = bool(two_rooms.success(self._state[None], self._goal[None])[0])
        return {"state": self._state.copy(), "goal_state": self._goal.copy(), "is_success": reached}
