"""Read a feature cache (see :mod:`jepa.tasks.features`) as examples for probes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from jepa.errors import InputError
from jepa.schema import Specs
from jepa.tasks.features import read_meta
from probes.base import Reads

Rows = NDArray[np.int64]

MEMORY = 2**27  # bytes of float32 latents that are read at once


@dataclass(frozen=True)
class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Windows of latents with a target each; latents are read from the disk when asked for."""

    features: NDArray[Any]  # [F,steps*N,D], memory-mapped
    rows: Rows  # [n,R] which rows of the cache make an example
    steps: int  # of a row: 1 where rows are frames
    y: Tensor  # float32 [n,K] in raw units, or int64 [n] class numbers
    episode: Rows  # [n] number of the episode in the source
    names: tuple[str, ...]  # K names of the target dimensions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        """``z [n,T,N,D]`` float32 and ``y`` of the examples ``index`` (a list, an array or a slice); T is R * steps."""
        rows = self.rows[index]
        z = torch.from_numpy(np.asarray(self.features[rows])).float()
        if not z.isfinite().all():
            bad = rows[~z.flatten(1).isfinite().all(1).numpy()][0, 0]
            raise InputError(f"the feature cache holds NaN or infinity near row {bad}: remove it and embed again")
        return z.unflatten(2, (self.steps, -1)).flatten(1, 2), self.y[index]

    @property
    def affordable(self) -> int:
        """How many examples can be in memory at once."""
        of_one = 4 * self.rows.shape[1] * int(np.prod(self.features.shape[1:]))
        return max(1, MEMORY // of_one)

    def select(self, keep: NDArray[Any]) -> Examples:
        return replace(self, rows=self.rows[keep], y=self.y[torch.from_numpy(keep)], episode=self.episode[keep])


class FeatureCache:
    """The latents of a dataset's frames or clips, with the columns beside them.

    Args:
        path: the folder that ``jepa embed`` wrote.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self.specs = Specs.from_dict(self.meta["specs"])
        self.features = self.column("features")
        self.offsets: Rows = np.asarray(self.column("offsets"))
        self.numbers: Rows = np.array([n for part in self.meta["splits"].values() for n in part], dtype=np.int64)
        if len(self.features) != self.offsets[-1] or len(self.offsets) != len(self.numbers) + 1:
            raise InputError(f"{self.path} is damaged, its arrays disagree in length: remove it and embed again")

    def column(self, name: str) -> NDArray[Any]:
        """``[F,...]``: features, action, proprio, state, reward, terminated or start, memory-mapped."""
        path = self.path / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            held = sorted(file.stem for file in self.path.glob("*.npy"))
            raise InputError(f"{self.path} has no column {name}, it has {', '.join(held)}: choose one") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): remove the cache and embed again") from error

    def episodes(self, split: str) -> Rows:
        """Numbers, within the cache, of the episodes of a split."""
        if split not in self.meta["splits"]:
            raise InputError(f"{self.path} has no split {split}, it has {', '.join(self.meta['splits'])}: choose one")
        chosen = np.flatnonzero(np.isin(self.numbers, self.meta["splits"][split]))
        if len(chosen) == 0:
            raise InputError(f"split {split} of {self.path} is empty: embed more episodes or change the fractions")
        return chosen

    def frames(self, split: str) -> tuple[Rows, Rows]:
        """Rows ``[n]`` of a split's frames, and their ids ``[n,2]``: (episode number in the source, frame)."""
        chosen = self.episodes(split)
        rows = np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in chosen])
        ids = [
            np.stack([np.full(n, self.numbers[e]), np.arange(n)], axis=1)
            for e, n in zip(chosen, np.diff(self.offsets)[chosen])
        ]
        return rows, np.concatenate(ids)

    def examples(
        self, split: str, target: str, reads: Reads = "frame", classes: int = 0, reach: int = 16, seed: int = 0
    ) -> Examples:
        """What a probe learns or is tested on.

        With k the frame skip that the world was trained with, the example at frame t holds z_t ("frame"), z_t and
        z_t+k ("next"), or z_t and z_goal ("goal"), where the goal is the frame j * k later in the same episode and j is
        drawn evenly from 1 to ``reach`` (or to the end of the episode). Of videos, clips take the place of frames.

        Args:
            split: name of a split of the cache.
            target: comma-separated names: a state or proprio dimension, a whole column (state, proprio), action (the
                block of k actions from t on) or reward (their sum).
            reads: what one example holds.
            classes: number of classes when the target is a class number, else 0.
            reach: how far goals may lie, in steps of k frames.
            seed: of the goals.
        """
        names = [name.strip() for name in target.split(",")]
        forward = reads != "frame" or bool({"action", "reward"} & set(names))
        rows, episode, last = self._origins(split, self.specs.action.block if forward else 0)
        columns = [self._target(name, rows) for name in names]
        y = torch.from_numpy(np.concatenate([value for value, _ in columns], axis=1).astype(np.float32))
        labels = tuple(label for _, part in columns for label in part)
        if not y.isfinite().all():
            raise InputError(f"target {target} holds NaN or infinity in split {split}: choose another")
        window = self._windows(rows, last, reads, reach, seed)
        y = _class_numbers(y, target, classes) if classes else y
        return Examples(self.features, window, self.meta["steps"], y, episode, labels)

    def _origins(self, split: str, ahead: int) -> tuple[Rows, Rows, Rows]:
        """Rows with at least ``ahead`` frames behind them, their source episodes, and their episodes' last rows."""
        starts = [(e, self.offsets[e], self.offsets[e + 1]) for e in self.episodes(split)]
        parts = [(np.arange(start, end - ahead), self.numbers[e], end - 1) for e, start, end in starts]
        rows = np.concatenate([part for part, _, _ in parts]).astype(np.int64)
        if len(rows) == 0:
            raise InputError(f"no episode of split {split} is longer than the frame skip {ahead}: record longer ones")
        sizes = [len(part) for part, _, _ in parts]
        return rows, np.repeat([n for _, n, _ in parts], sizes), np.repeat([last for _, _, last in parts], sizes)

    def _windows(self, rows: Rows, last: Rows, reads: Reads, reach: int, seed: int) -> Rows:
        if reads == "frame":
            return rows[:, None]
        skip = self.specs.action.block
        steps = np.ones_like(rows)
        if reads == "goal":
            if reach < 1:
                raise InputError(f"reach={reach}: expected at least 1, goals lie in the future")
            steps = np.random.default_rng(seed).integers(1, np.minimum(reach, (last - rows) // skip), endpoint=True)
        return np.stack([rows, rows + skip * steps], axis=1)

    def _target(self, name: str, rows: Rows) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Values ``[n,K]`` of a named target at ``rows``, and the names of their dimensions."""
        skip = self.specs.action.block
        states = self.specs.observation.state_names
        if name in states:
            return self.column("state")[rows][:, [states.index(name)]], (name,)
        if name in ("action", "reward"):
            column = self.column(name)
            block = np.stack([column[rows + step] for step in range(skip)], axis=1)
            if name == "reward":
                return block.sum(1)[:, None], ("reward",)
            labels = tuple(f"action[{step}][{dim}]" for step in range(skip) for dim in range(block.shape[2]))
            return block.reshape(len(rows), -1), labels
        if name in ("state", "proprio"):
            values = self.column(name)[rows]
            known = states if name == "state" and states else [f"{name}[{dim}]" for dim in range(values.shape[1])]
            return values, tuple(known)
        choices = ", ".join((*states, "state", "proprio", "action", "reward"))
        raise InputError(f"target {name} is unknown: expected one of {choices}")


def _class_numbers(y: Tensor, target: str, classes: int) -> Tensor:
    numbers = y[:, 0].round().long()
    if y.shape[1] != 1 or not torch.equal(numbers.float(), y[:, 0]) or numbers.min() < 0 or numbers.max() >= classes:
        raise InputError(f"target {target} is not a class number: expected one whole number from 0 to {classes - 1}")
    return numbers


def batches(examples: Examples, size: int, generator: torch.Generator | None = None) -> DataLoader:
    """Batches read with one access each; shuffled where a generator is given."""
    order = SequentialSampler(examples) if generator is None else RandomSampler(examples, generator=generator)
    return DataLoader(examples, sampler=BatchSampler(order, size, drop_last=False), batch_size=None)


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Split by episode: (the rest, the held-out part), at least one episode each."""
    numbers = np.unique(examples.episode)
    if len(numbers) < 2:
        raise InputError("the training split has 1 episode: expected at least 2, one is held out to choose the head")
    count = min(max(1, round(fraction * len(numbers))), len(numbers) - 1)
    held = np.isin(examples.episode, np.random.default_rng(seed).permutation(numbers)[:count])
    return examples.select(~held), examples.select(held)
