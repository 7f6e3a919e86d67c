"""gymnasium-robotics' PointMaze: a ball that is pushed through a maze to where the goal image shows it."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.envs.adapter import Traits, Vector
from jepa.envs.mujoco_env import MujocoAdapter, above, no_force

TOLERANCE = 0.5  # metres, as in DINO-WM and JEPA-WM
OUTER_WALL = 0.6  # metres of the outer wall that the camera leaves out


def success(state: Tensor, goal: Tensor) -> Tensor:
    """States and goals [B,4] -> [B]: the ball is within 0.5 m of the goal."""
    return torch.linalg.vector_norm(state[..., :2] - goal[..., :2], dim=-1) < TOLERANCE


class PointMaze(MujocoAdapter):
    """``PointMaze_*-v3``. State and proprioception: x, y and the velocities.

    Starts and goals are the simulator's own draws (noisy cell centres). Its red goal marker is hidden, so that the
    goal image and the present differ in the ball alone. Reaching the goal ends nothing. Seen from above.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
        fast_render: see :class:`jepa.envs.mujoco_env.MujocoAdapter`.
    """

    def __init__(self, env_id: str = "PointMaze_UMaze-v3", size: int = 64, fast_render: bool = True) -> None:
        super().__init__(env_id, size, fast_render)
        os.unlink(self.simulator.tmp_xml_file_path)  # gymnasium-robotics leaves one behind for every environment
        self.model.site("target").rgba[3] = 0.0

    @property
    def simulator(self) -> Any:
        return self.env.unwrapped

    def camera(self) -> dict[str, Any]:
        maze = self.simulator.maze
        half_width = max(maze.map_length, maze.map_width) * maze.maze_size_scaling / 2 - OUTER_WALL
        return above(half_width, maze.maze_height)

    def renderer(self) -> Any:
        return self.simulator.point_env.mujoco_renderer

    def describe(self, low: tuple[float, ...], high: tuple[float, ...]) -> Traits:
        names = ("x", "y", "x_velocity", "y_velocity")
        return Traits(low, high, names, len(names), success, partial(no_force, width=len(low)))

    def draw(self) -> tuple[Vector, Vector]:
        self.env.reset(seed=int(self.rng.integers(2**31)))
        goal = np.concatenate([self.simulator.goal, np.zeros(2)]).astype(np.float32)
        return self.state(), goal

    def place(self, state: Vector, goal: Vector) -> None:
        self.simulator.goal = goal[:2].astype(float)
        super().place(state, goal)
