"""The verb ``jepa collect``: record episodes of an environment, with a script or a trained policy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from jepa.data.hdf5 import Hdf5Writer
from jepa.envs import make
from jepa.envs.policies import SCRIPTS
from jepa.errors import InputError, check_known
from jepa.schema import Policy, Sample, Task

log = logging.getLogger(__name__)


def collect(
    env: str,
    out: Path,
    script: str = "random",
    policy: Policy | None = None,
    episodes: int = 100,
    steps: int = 100,
    num: int = 32,
    workers: int = 0,
    size: int = 64,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    resume: bool = False,
) -> str:
    """Record episodes of any environment into an HDF5 file.

    Args:
        env: a gymnasium id, or two_rooms, two_rooms_random, pusht, reacher, point_maze, ogbench_cube, metaworld_reach,
            metaworld_reach_wall
        out: the file to write; an interrupted collection stays readable as OUT.part
        script: random, smooth, wander (Two Rooms), contact (PushT), oracle (Cube), expert (MetaWorld) or idle
        policy: a trained policy by class_path, instead of the script
        episodes: how many episodes
        steps: environment steps of an episode; one that ends earlier is shorter
        num: environments at once
        workers: processes that step them; 0 steps them in this one
        size: height and width of the frames in pixels
        seed: episode i starts from seed + i; evaluation protocols start from one million on
        options: of the environment, as in jepa.envs.make
        resume: go on behind the episodes that OUT or OUT.part already holds
    """
    check_known("script", [script], SCRIPTS)
    if min(episodes, steps, num) < 1:
        raise InputError(f"collect was given episodes={episodes}, steps={steps}, num={num}; each is at least 1")
    task = make(env, min(num, episodes), workers, size, **(options or {}))
    try:
        with Hdf5Writer(out, task.specs, resume=resume) as writer:
            rounds = range(writer.episodes, episodes, task.num)
            for first in track(rounds, description=f"collecting {task.specs.evaluation.env}"):
                actor = policy or SCRIPTS[script](task, torch.Generator().manual_seed(seed + first))
                for row in record(task, actor, steps, seed + first)[: episodes - first]:
                    writer.append(**row)
    finally:
        task.close()
    return f"{out}: {writer.episodes} episodes, {writer.frames} frames of {env}"


def record(task: Task, policy: Policy, steps: int, seed: int) -> list[dict[str, torch.Tensor | None]]:
    """One episode of each environment: the arguments of ``Hdf5Writer.append``, cut where the environment ended."""
    present = task.reset(seed=seed)
    policy.reset(torch.ones(task.num, dtype=torch.bool))
    seen, done = [present], []
    alive = torch.ones(task.num, dtype=torch.bool)
    length = torch.zeros(task.num, dtype=torch.long)
    while len(done) < steps and alive.any():
        action = policy.act(seen[-1])
        outcome = task.step(action)
        done.append((action, outcome.reward, outcome.terminated))
        seen.append(outcome.sample)
        length += alive
        alive &= ~outcome.terminated
    columns = [torch.stack(column, dim=1) for column in zip(*done)]
    return [_episode(seen, columns, i, int(length[i])) for i in range(task.num)]


def _episode(seen: list[Sample], columns: list[torch.Tensor], i: int, length: int) -> dict[str, torch.Tensor | None]:
    def frames(name: str) -> torch.Tensor | None:
        if getattr(seen[0], name) is None:
            return None
        return torch.cat([getattr(sample, name)[i] for sample in seen[: length + 1]])

    rows = {name: frames(name) for name in ("video", "proprio", "state")}
    return rows | {name: column[i, :length] for name, column in zip(("action", "reward", "terminated"), columns)}
