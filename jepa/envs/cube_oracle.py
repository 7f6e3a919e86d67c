"""OGBench's scripted oracle as a collection policy: it picks the cube up and puts it down somewhere else, again and
again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs.mujoco_env import load_mujoco
from jepa.errors import InputError
from jepa.schema import Sample, Task


class CubeOracle:
    """Plays of ``CubePlanOracle``, one after the other: a new cube, target and noise in each.

    A play follows a trajectory with noise that is correlated in time, in units of the largest step of each action.
    Some plays miss the cube or lose it; the next begins from wherever it lies then.

    Args:
        task: OGBench's Cube; the state holds the cubes, the proprioception the grip.
        generator: the source of randomness.
        noise: least and greatest noise of a play, uniform between; OGBench's own datasets have 0.1.
    """

    def __init__(self, task: Task, generator: torch.Generator, noise: tuple[float, float] = (0.1, 0.4)) -> None:
        names = task.specs.observation.state_names
        self.cubes = [number for number, name in enumerate(names) if name.startswith("cube_") and name.endswith("_x")]
        if not self.cubes:
            raise InputError(f"the oracle plays OGBench's Cube, was given {task.specs.evaluation.env}; use smooth")
        load_mujoco()  # the environments may live in other processes
        from ogbench.manipspace import lie
        from ogbench.manipspace.envs.cube_env import CubeEnv
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

        self._lie, self._oracle = lie, CubePlanOracle
        self._table = CubeEnv("single", mode="data_collection")  # never simulated: the oracle reads its bounds
        self.space, self.generator, self.noise = task.specs.action, generator, noise
        self._plays: list[Any] = [None] * task.num
        self._steps = 0

    def act(self, sample: Sample) -> Tensor:
        assert sample.state is not None and sample.proprio is not None, "the oracle reads state and proprioception"
        rows = zip(sample.state[:, -1].double().numpy(), sample.proprio[:, -1].double().numpy())
        actions = [self._choose(i, *row) for i, row in enumerate(rows)]
        self._steps += 1
        return self.space.clip(torch.from_numpy(np.stack(actions)).float())

    def _choose(self, i: int, state: NDArray[np.float64], proprio: NDArray[np.float64]) -> NDArray[np.float64]:
        info = {
            "time": [self._steps * self._table.control_timestep()],
            "proprio/effector_pos": proprio[:3],
            "proprio/effector_yaw": [np.arctan2(proprio[4], proprio[3])],
            "proprio/gripper_opening": proprio[5:6],
        }
        if self._plays[i] is None or self._plays[i].done:
            self._begin(i, state, info)
        return self._plays[i].select_action(None, info)

    def _begin(self, i: int, state: NDArray[np.float64], info: dict[str, Any]) -> None:
        """Another play: any cube to any place on the table."""
        with seeded(self.generator):
            first = self.cubes[np.random.randint(len(self.cubes))]
            target = {
                "privileged/target_block": 0,
                "privileged/block_0_pos": state[first : first + 3],
                "privileged/block_0_yaw": [self._lie.SO3(wxyz=state[first + 3 : first + 7]).compute_yaw_radians()],
                "privileged/target_block_pos": np.append(np.random.uniform(*self._table._target_sampling_bounds), 0.02),
                "privileged/target_block_yaw": [np.random.uniform(0, 2 * np.pi)],
            }
            self._plays[i] = self._oracle(self._table, noise=np.random.uniform(*self.noise))
            self._plays[i].reset(None, info | target)

    def reset(self, done: Tensor) -> None:
        for i in done.nonzero()[:, 0].tolist():
            self._plays[i] = None


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """numpy's global randomness, which the oracle draws from, seeded by ours inside and as it was outside."""
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, (1,), generator=generator)))
    try:
        yield
    finally:
        np.random.set_state(before)
