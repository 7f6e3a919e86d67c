"""gymnasium's Reacher: a two-joint arm that must take the pose of the goal image."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.envs.adapter import Traits, Vector
from jepa.envs.mujoco_env import MujocoAdapter, above, no_force

JOINTS = 2
TOLERANCE = 0.05  # radians, as in stable-worldmodel


def success(state: Tensor, goal: Tensor) -> Tensor:
    """States and goals [B,4] -> [B]: both joints within 0.05 rad, on the circle."""
    apart = state[..., :JOINTS] - goal[..., :JOINTS]
    apart = torch.remainder(apart + math.pi, 2 * math.pi) - math.pi
    return (apart.abs() < TOLERANCE).all(dim=-1)


class Reacher(MujocoAdapter):
    """``Reacher-v5``. State: the two joint angles and velocities. Proprioception: cosines, sines, velocities.

    Starts and goals are drawn over all poses, at rest (the simulator's own starts lie within 0.1 rad of one pose).
    The simulator's red target is hidden, so that the goal image and the present differ in the arm alone; it is put
    where the goal holds the fingertip, so that the reward is about our goal.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
        fast_render: see :class:`jepa.envs.mujoco_env.MujocoAdapter`.
    """

    def __init__(self, env_id: str = "Reacher-v5", size: int = 64, fast_render: bool = True) -> None:
        super().__init__(env_id, size, fast_render)
        self.model.geom("target").rgba[3] = 0.0

    def camera(self) -> dict[str, Any]:
        return above(0.235)  # the arm reaches 0.22 m

    def describe(self, low: tuple[float, ...], high: tuple[float, ...]) -> Traits:
        names = ("joint0", "joint1", "joint0_velocity", "joint1_velocity")
        return Traits(low, high, names, 3 * JOINTS, success, partial(no_force, width=len(low)))

    def draw(self) -> tuple[Vector, Vector]:
        reach = np.array([np.pi, 2.8])  # the second joint stops at 3 rad
        start, goal = (np.concatenate([self.rng.uniform(-reach, reach), np.zeros(2)]) for _ in range(2))
        return start.astype(np.float32), goal.astype(np.float32)

    def place(self, state: Vector, goal: Vector) -> None:
        still = np.zeros(2)
        self.set_physics(np.concatenate([goal[:2], still]), np.zeros(4))
        target = self.data.body("fingertip").xpos[:2].copy()
        self.set_physics(np.concatenate([state[:2], target]), np.concatenate([state[2:], still]))

    def state(self) -> Vector:
        return np.concatenate([self.data.qpos[:JOINTS], self.data.qvel[:JOINTS]]).astype(np.float32)

    def proprio(self) -> Vector:
        angle = self.data.qpos[:JOINTS]
        return np.concatenate([np.cos(angle), np.sin(angle), self.data.qvel[:JOINTS]]).astype(np.float32)
