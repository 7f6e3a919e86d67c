"""The one windowing logic: from episodes to windows of frames and the blocks of actions between them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa.data.random import bits, unit
from jepa.errors import InputError
from jepa.schema import Episodes, Sample, Specs

log = logging.getLogger(__name__)

FRAMES = ("video", "latent", "proprio", "state")  # one per frame of the window
STEPS = ("action", "reward", "terminated")  # one per environment step within it


class Clips(Dataset):
    """Every window of ``frames`` frames, ``frame_skip`` environment steps apart, that the episodes hold.

    Item n is a :class:`jepa.schema.Sample` without batch axis: video uint8 [T,C,H,W], proprio [T,P] and state [T,X] at
    the frames; action [T-1, k*a], the k environment actions of a step concatenated in order; reward [T-1], their sum;
    terminated [T-1], whether any of them ended the episode; index int64 [2], episode number and first frame.
    With a frame skip of k a window spans (T-1)*k + 1 rows; its last frame may be the episode's last.

    Args:
        episodes: The store.
        indices: Numbers of the episodes to use; all by default.
        frames: T, frames of a window.
        frame_skip: k, environment steps from one frame to the next.
        stride: Environment steps from the start of a window to that of the next one in the same episode.
        goal: "future" adds a goal drawn uniformly from the frames behind the window (its own last frame where none is
            left), "last" the episode's last frame. A goal depends on the seed and on the window's number only.
        columns: The fields to read; all that the store has by default.
        history: Frames that a model may start from, written to the specs.
        seed: Seed of the goals.

    Raises:
        InputError: no episode is long enough, or the store lacks a column.
    """

    def __init__(
        self,
        episodes: Episodes,
        indices: Sequence[int] | None = None,
        frames: int = 9,
        frame_skip: int = 1,
        stride: int = 1,
        goal: Literal["none", "future", "last"] = "none",
        columns: tuple[str, ...] | None = None,
        history: int = 1,
        seed: int = 0,
    ) -> None:
        _check(frames, frame_skip, stride, goal, history)
        self.episodes, self.frames, self.frame_skip, self.stride = episodes, frames, frame_skip, stride
        self.goal, self.history, self.seed = goal, history, seed
        self.span = (frames - 1) * frame_skip  # environment steps of a window
        wanted = np.arange(len(episodes)) if indices is None else np.asarray(indices, dtype=np.int64)
        length = np.array([episodes.length(int(number)) for number in wanted], dtype=np.int64)
        windows = np.maximum(0, (length - self.span - 1) // stride + 1)
        self.short = int((windows == 0).sum())
        if not windows.sum():
            raise InputError(
                f"no window of {frames} frames with frame skip {frame_skip} fits: it needs {self.span + 1} frames and "
                f"the longest of {len(wanted)} episodes has {length.max(initial=0)}; use a smaller frames or frame_skip"
            )
        if self.short:
            counts = (self.short, len(wanted), self.span + 1)
            log.warning("%d of %d episodes have fewer than %d frames and are left out", *counts)
        self._episode, self._ends = wanted[windows > 0], windows[windows > 0].cumsum()
        held = episodes.read(int(self._episode[0]), np.zeros(1, np.int64), columns)
        self._frame_columns = tuple(name for name in FRAMES if getattr(held, name) is not None)
        self._step_columns = tuple(name for name in STEPS if getattr(held, name) is not None)

    @property
    def specs(self) -> Specs:
        """The store's specs for models of these windows: the action block is the frame skip."""
        stored = self.episodes.specs
        return replace(
            stored,
            action=replace(stored.action, block=self.frame_skip),
            evaluation=replace(stored.evaluation, history=self.history),
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers and first frames (int64 [B]) of windows."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"windows {wanted.min()} to {wanted.max()} of {len(self)}")
        place = self._ends.searchsorted(wanted, side="right")
        begins = self._ends - np.diff(self._ends, prepend=0)
        return self._episode[place], (wanted - begins[place]) * self.stride

    def __getitem__(self, number: int) -> Sample:
        return self.__getitems__([number]).map(lambda part: part[0])

    def __getitems__(self, numbers: Sequence[int]) -> Sample:
        """A batch, allocated once and filled in place in the memory layout of the store."""
        episode, start = self.windows(numbers)
        frames = start[:, None] + np.arange(0, self.span + 1, self.frame_skip)
        sample = _read(self.episodes, episode, frames, self._frame_columns)
        if self._step_columns and self.frames > 1:
            steps = _read(self.episodes, episode, start[:, None] + np.arange(self.span), self._step_columns)
            sample = replace(sample, **self._blocks(steps, len(start)))
        goal = None
        if self.goal != "none":
            goal = _read(self.episodes, episode, self._goals(numbers, episode, start)[:, None], self._frame_columns)
        return replace(sample, goal=goal, index=torch.from_numpy(np.stack([episode, start], axis=1)))

    def _blocks(self, steps: Sample, batch: int) -> dict[str, Tensor]:
        shape, blocks = (batch, self.frames - 1, self.frame_skip), {}
        if steps.action is not None:
            blocks["action"] = steps.action.reshape(*shape[:2], self.frame_skip * steps.action.shape[-1])
        if steps.reward is not None:
            blocks["reward"] = steps.reward.reshape(shape).sum(dim=2)
        if steps.terminated is not None:
            blocks["terminated"] = steps.terminated.reshape(shape).any(dim=2)
        return blocks

    def _goals(self, numbers: Sequence[int], episode: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Frame of each goal, int64 [B]."""
        last = np.array([self.episodes.length(int(number)) - 1 for number in episode])
        if self.goal == "last":
            return last
        left = last - start - self.span  # frames behind the window
        chance = unit(bits(self.seed, np.asarray(numbers))) + 2.0**-53  # in (0, 1]
        drawn = np.ceil(chance * left).astype(np.int64)
        return start + self.span + drawn


def collate(given: Sample | list[Sample]) -> Sample:
    """For DataLoader: a batch that a dataset made itself passes, single windows are stacked."""
    return given if isinstance(given, Sample) else Sample.stack(given)


def split(
    episodes: Episodes, parts: Sequence[float] = (0.9, 0.05, 0.05), seed: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the training, validation and test episodes, each ascending: whole episodes, without overlap.

    A part of more than zero is never empty where there are three episodes; of less, training comes first. The same
    seed and number of episodes give the same split everywhere.
    """
    total = len(episodes)
    if len(parts) != 3 or min(parts) < 0 or not parts[0] or abs(sum(parts) - 1) > 1e-6:
        raise InputError(f"splits are {list(parts)}, expected train, validation and test parts that sum to 1")
    counts = [max(int(round(part * total)), int(part > 0)) for part in parts[1:]]
    while sum(counts) >= total and max(counts):  # training keeps at least one episode
        counts[counts.index(max(counts))] -= 1
    order = np.random.default_rng(seed).permutation(total)
    held_out = np.split(order, np.cumsum(counts))
    val, test, train = (sorted(part.tolist()) for part in held_out)
    log.info("split %d episodes by seed %d: %d train, %d val, %d test", total, seed, len(train), len(val), len(test))
    if total < 3:
        log.warning("%d episodes are too few for train, val and test; expected at least 3", total)
    return train, val, test


def _check(frames: int, frame_skip: int, stride: int, goal: str, history: int) -> None:
    if min(frames, frame_skip, stride) < 1:
        raise InputError(f"frames, frame_skip, stride are {frames}, {frame_skip}, {stride}; each must be at least 1")
    if goal not in ("none", "future", "last"):
        raise InputError(f"goal is {goal!r}, expected none, future or last")
    if not 1 <= history <= frames:
        raise InputError(f"history is {history}, expected 1 to {frames}, the frames of a window")


def _read(episodes: Episodes, numbers: np.ndarray, frames: np.ndarray, columns: tuple[str, ...]) -> Sample:
    """Frames [B,T] of episodes [B]: at once where the store can, else one by one into a batch allocated once."""
    if hasattr(episodes, "read_many"):
        return episodes.read_many(numbers, frames, columns)
    first = episodes.read(int(numbers[0]), frames[0], columns)
    batch = first.map(lambda part: _room(part, len(numbers)))
    for row, number in enumerate(numbers):
        sample = episodes.read(int(number), frames[row], columns) if row else first
        for name in columns:
            getattr(batch, name)[row] = getattr(sample, name)
    return batch


def _room(part: Tensor, size: int) -> Tensor:
    """Room for ``size`` tensors like a dense ``part``, each with its strides: filling it copies memory as it lies."""
    return torch.empty_strided((size, *part.shape), (part.numel(), *part.stride()), dtype=part.dtype)
