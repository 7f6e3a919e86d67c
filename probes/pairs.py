"""Pairs of frames for success detection: frames with goals that they reach, and with goals that they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs import make
from jepa.errors import InputError
from jepa.schema import Specs

TARGET = "success"
Rows = NDArray[np.int64]
Success = Callable[[Tensor, Tensor], Tensor]  # privileged states and goals [B,X] -> bool [B]


def rule(specs: Specs) -> Success:
    """The success rule of the environment that the episodes come from."""
    env = specs.evaluation.env
    if not env:
        raise InputError(f"target {TARGET} needs an environment, whose rule it is: these episodes name none")
    task = make(env, num=1, size=specs.observation.height, **specs.evaluation.env_options)
    task.close()  # the rule needs no simulator
    return task.success


def pairs(
    state: NDArray[np.float32], bounds: Sequence[tuple[int, int]], success: Success, reach: int, seed: int
) -> tuple[Rows, Tensor]:
    """Frames with a goal each, for every frame that was reached as often as ones that were not.

    A goal is another frame of the same episode, up to ``reach`` frames before or after: for half of the frames one that
    is reached, by the rule, for the others one that is not. Frames that have no such goal are left out, and as many of
    the larger half as make both alike.

    Args:
        state: privileged states [F,X], which nothing but the labels comes from.
        bounds: first and last row (excluded) of every episode.
        success: the rule.
        reach: how far away goals may lie, in frames.
        seed: of the draw.

    Returns:
        rows int64 [n,2] of frames and goals, in ascending order of frames; and labels int64 [n]
    """
    if reach < 1:
        raise InputError(f"reach={reach}: expected at least 1, goals lie before or after")
    generator, found = np.random.default_rng(seed), []
    for first, end in bounds:
        states = torch.from_numpy(np.asarray(state[np.arange(first, end)], dtype=np.float32))
        found.append(_pairs_of(states, success, reach, generator) + [first, first, 0])
    every = np.concatenate(found)
    of_both = [np.flatnonzero(every[:, 2] == label) for label in (0, 1)]
    size = min(map(len, of_both))
    if size == 0:
        name = "reached" if len(of_both[1]) == 0 else "out of reach"
        raise InputError(f"no frame has a goal within {reach} frames that is {name}: change reach")
    kept = np.sort(np.concatenate([generator.permutation(part)[:size] for part in of_both]))
    return every[kept, :2], torch.from_numpy(every[kept, 2].copy())


def _pairs_of(states: Tensor, success: Success, reach: int, generator: np.random.Generator) -> Rows:
    """Frame, goal and label ``[m,3]`` of one episode ``[T,X]``."""
    count = len(states)
    reach = min(reach, count - 1)
    frame = np.repeat(np.arange(count), 2 * reach + 1)  # memory is that of the pairs within reach, not of all pairs
    goal = frame + np.tile(np.arange(-reach, reach + 1), count)
    near = (goal >= 0) & (goal < count) & (frame != goal)
    frame, goal = frame[near], goal[near]
    label = success(states[frame], states[goal]).numpy().astype(np.int64)
    wanted = generator.permutation(count) % 2
    fits = np.flatnonzero(label == wanted[frame])
    fits = generator.permutation(fits)
    _, chosen = np.unique(frame[fits], return_index=True)  # the first of each frame, in a random order
    return np.stack([frame, goal, label], axis=1)[fits[chosen]]
