"""OGBench's Cube: an arm with a gripper must bring the cube to where the goal image shows it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs.adapter import Traits, Vector
from jepa.envs.mujoco_env import MujocoAdapter, no_force

TOLERANCE = 0.04  # metres, the simulator's own; a cube has edges of 0.04
CAMERA = "front_pixels"  # where OGBench's own datasets of 64 pixels are seen from
SEE_THROUGH = 0.1  # opacity of the arm, as in those datasets: it would hide the cube
FINGERS = "ur5e/robotiq/pad_gray"
FINGER_OPACITY = 0.5
PURPLE = (0.61, 0.28, 0.82)
PROPRIO = ("effector_pos", "effector_yaw", "gripper_opening", "joint_pos", "joint_vel")


def success(state: Tensor, goal: Tensor, cubes: Sequence[int]) -> Tensor:
    """States and goals [B,X] -> [B]: every cube, whose x, y, z begin at these columns, is within 0.04 m."""
    place = torch.tensor(cubes)[:, None] + torch.arange(3)
    return (torch.linalg.vector_norm(state[..., place] - goal[..., place], dim=-1) <= TOLERANCE).all(dim=-1)


class OgbenchCube(MujocoAdapter):
    """``visual-cube-*-v0``, and ``cube-*-v0`` shown alike. State: positions and velocities of all joints, cubes last.

    Proprioception: x, y, z of the grip, cosine and sine of its yaw, opening of the gripper (0 is open), and the six
    angles and velocities of the arm. Actions move the grip (x, y, z, yaw) and the gripper, relative to the present.

    Starts and goals are drawn as for the published datasets: the arm anywhere above the table, each cube anywhere on
    it. The mark of the simulator's own target is hidden, so that the goal image and the present differ in the robot
    and the cubes alone. The reward is 1 where our goal is reached, which ends nothing.

    The simulator is put at the state that it shows, in single precision, after every step. So a recorded state is all
    there is to know: the same actions from it give the same frames and states, bit for bit, also out of a grasp.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
        fast_render: see :class:`jepa.envs.mujoco_env.MujocoAdapter`.
    """

    def __init__(self, env_id: str = "visual-cube-single-v0", size: int = 64, fast_render: bool = True) -> None:
        quiet = {"ob_type": "states", "visualize_info": False, "render_mode": None}  # we render, once per step
        with warnings.catch_warnings():  # of the bounds of its action space, on every look at it
            warnings.filterwarnings("ignore", "(?s).*precision lowered by casting")
            super().__init__(env_id, size, fast_render, quiet | {"mode": "data_collection", "terminate_at_goal": False})
        self._goal = self.state()
        self._canvas: Any = None
        for number in range(self.model.nmat):
            material = self.model.material(number)
            if material.name in (FINGERS, "ur5e/robotiq/black"):
                material.rgba[:3] = PURPLE
            if material.name.startswith("ur5e/"):
                material.rgba[3] = FINGER_OPACITY if material.name == FINGERS else SEE_THROUGH

    @property
    def simulator(self) -> Any:
        return self.env.unwrapped

    def describe(self, low: tuple[float, ...], high: tuple[float, ...]) -> Traits:
        places, speeds, cubes = [], [], []
        for number in range(self.model.njnt):
            joint = self.model.joint(number)
            name = joint.name.split("/")[-1].replace("_joint", "").replace("object", "cube")
            if joint.type[0] == self.mujoco.mjtJoint.mjJNT_FREE:
                cubes.append(int(joint.qposadr[0]))
                places += [f"{name}_{part}" for part in ("x", "y", "z", "qw", "qx", "qy", "qz")]
                speeds += [f"{name}_{part}" for part in ("vx", "vy", "vz", "wx", "wy", "wz")]
            else:
                places.append(name)
                speeds.append(f"{name}_velocity")
        reached = partial(success, cubes=tuple(cubes))
        return Traits(low, high, (*places, *speeds), len(self.proprio()), reached, partial(no_force, width=len(low)))

    def place(self, state: Vector, goal: Vector) -> None:
        self._goal = goal
        super().place(state, goal)

    def proprio(self) -> Vector:
        seen = {name: np.ravel(self.simulator.compute_ob_info()[f"proprio/{name}"]) for name in PROPRIO}
        yaw = seen["effector_yaw"]
        seen["effector_yaw"] = np.concatenate([np.cos(yaw), np.sin(yaw)])
        return np.concatenate([*seen.values()]).astype(np.float32)

    def picture(self) -> NDArray[np.uint8]:
        if self._canvas is None:  # the simulator's own renderer is never closed
            self._canvas = self.mujoco.Renderer(self.model, self.size, self.size)
        self._canvas.update_scene(self.data, camera=CAMERA)
        return self._canvas.render()

    def advance(self, action: Vector) -> tuple[float, bool]:
        _, ended = super().advance(action)
        state = self.state()
        super().place(state, self._goal)
        return float(self.traits.success(torch.from_numpy(state), torch.from_numpy(self._goal))), ended

    def close(self) -> None:
        if self._canvas is not None:
            self._canvas.close()
        super().close()
