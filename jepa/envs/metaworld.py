"""MetaWorld's reach tasks: a robot arm that must bring its gripper to where the goal image shows it."""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs.adapter import Traits, Vector
from jepa.envs.mujoco_env import MujocoAdapter, no_force
from jepa.errors import check_choice

TASKS = ("reach", "reach_wall")
TOLERANCE = 0.05  # metres, as in MetaWorld
EXPERT_STEPS = 100  # length of an episode in JEPA-WM, whose goals are the last frames of an expert
HAND, PROPRIO, FINGERS, PHYSICS = slice(0, 3), slice(0, 4), slice(4, 7), slice(7, None)  # parts of the state
OBJECT = slice(16, 23)  # position and quaternion of the puck: the end of the joint positions
OBSERVATION = 39  # width of what MetaWorld's policies read: hand, gripper and objects twice, then the target


def success(state: Tensor, goal: Tensor) -> Tensor:
    """States and goals [B,X] -> [B]: the point between the fingers is within 5 cm of the goal's."""
    return torch.linalg.vector_norm(state[..., FINGERS] - goal[..., FINGERS], dim=-1) <= TOLERANCE


def scripted(task: str) -> Any:
    """MetaWorld's own policy for a task: ``get_action(observation [39]) -> [4]``."""
    return importlib.import_module("metaworld.policies").ENV_POLICY_MAP[_official(task)]()


def expert_action(policy: Any, state: Vector, target: NDArray[Any]) -> Vector:
    """What MetaWorld's policy does in a privileged state [X] to bring the hand to ``target`` [3]: an action [4]."""
    observation = np.zeros(OBSERVATION)
    observation[PROPRIO], observation[4:11], observation[-3:] = state[PROPRIO], state[OBJECT], target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns at every action that its gain exceeds the bounds
        return np.clip(policy.get_action(observation), -1, 1).astype(np.float32)


def _official(task: str) -> str:
    return f"{task.replace('_', '-')}-v3"


class MetaWorld(MujocoAdapter):
    """``Meta-World/MT1``. An action moves the hand by up to 1 cm along x, y and z, and drives the gripper.

    State: position of the hand, opening of the gripper, the point between the fingers (all that success needs), then
    what the simulator goes on from: joint positions, velocities, and the point that drags the hand along. Both are
    kept in float32 and the solver starts every step afresh, so that a state put back goes on exactly as it did.
    Proprioception: hand and gripper, the first four numbers of MetaWorld's observation, as in JEPA-WM.

    Starts are MetaWorld's own: the hand is always at the same place, the puck is not. Goals are the states that its
    scripted policy reaches in 100 steps from there, when the target is drawn as MetaWorld draws it. The red target is
    hidden, so that the goal image and the present differ in the arm alone; the reward is about the goal image, and
    MetaWorld's own success is ours. Nothing ends an episode. Seen about as JEPA-WM sees it, from a corner of the table.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
        task: reach, or reach_wall, with a brick wall between the start and the goals.
        fast_render: see :class:`jepa.envs.mujoco_env.MujocoAdapter`; here the metal walls mirror nothing either.
    """

    def __init__(
        self, env_id: str = "Meta-World/MT1", size: int = 64, task: str = "reach", fast_render: bool = True
    ) -> None:
        check_choice("task", task, TASKS)
        super().__init__(env_id, size, fast_render, {"env_name": _official(task), "seed": 0})
        self.policy = scripted(task)
        self.model.site("goal").rgba[3] = 0.0
        if fast_render:
            self.model.mat_reflectance[:] = 0.0
        self.simulator.seeded_rand_vec, self.simulator._freeze_rand_vec = True, False  # draws from its np_random
        self._keep()

    @property
    def simulator(self) -> Any:
        return self.env.unwrapped

    def camera(self) -> dict[str, Any]:
        # MetaWorld's own cameras stand on their heads
        return {"distance": 1.1, "azimuth": 142.0, "elevation": -32.0, "lookat": np.array([0.0, 0.7, 0.18])}

    def describe(self, low: tuple[float, ...], high: tuple[float, ...]) -> Traits:
        names = ["hand_x", "hand_y", "hand_z", "gripper", "fingers_x", "fingers_y", "fingers_z"]
        names += [f"qpos_{i}" for i in range(self.model.nq)] + [f"qvel_{i}" for i in range(self.model.nv)]
        names += ["drag_x", "drag_y", "drag_z"]
        return Traits(low, high, tuple(names), 4, success, partial(no_force, width=len(low)))

    def draw(self) -> tuple[Vector, Vector]:
        self.simulator.seed(int(self.rng.integers(2**31)))
        self.simulator.reset()
        self._keep()
        start, target = self.state(), self.simulator._target_pos.copy()
        for _ in range(EXPERT_STEPS):
            self.advance(expert_action(self.policy, self.state(), target))
        return start, self.state()

    def place(self, state: Vector, goal: Vector) -> None:
        self.simulator._target_pos = goal[FINGERS].astype(float)
        qpos, qvel, drag = np.split(state[PHYSICS], np.cumsum([self.model.nq, self.model.nv]))
        self.set_physics(qpos, qvel)
        self.data.mocap_pos[0], self.data.mocap_quat[0] = drag, (1, 0, 1, 0)
        self._keep()

    def _keep(self) -> None:
        """Round what the simulator goes on from to float32, and forget what its solver remembers besides."""
        kept = (self.data.qpos, self.data.qvel, self.data.mocap_pos[0])
        self._physics = np.concatenate(kept).astype(np.float32)
        for values, rounded in zip(kept, np.split(self._physics, np.cumsum([len(part) for part in kept])[:-1])):
            values[:] = rounded
        self.mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = 0.0

    def state(self) -> Vector:
        return np.concatenate([self.proprio(), self.simulator.tcp_center, self._physics]).astype(np.float32)

    def proprio(self) -> Vector:
        right, left = (self.data.body(name).xpos for name in ("rightclaw", "leftclaw"))
        gripper = np.clip(np.linalg.norm(right - left) / 0.1, 0.0, 1.0)  # of the 10 cm that it opens
        return np.array([*self.simulator.get_endeff_pos(), gripper], dtype=np.float32)

    def advance(self, action: Vector) -> tuple[float, bool]:
        self.simulator.curr_path_length = 0  # it would refuse to go on after 500 steps; budgets are the caller's
        _, reward, _, _, _ = self.simulator.step(action)
        self._keep()
        return float(reward), False
