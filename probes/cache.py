"""Read a feature cache (see :mod:`jepa.tasks.features`) as examples for probes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from jepa.errors import InputError, check_choice
from jepa.schema import Specs
from jepa.tasks.features import OFFSETS, read_meta
from jepa.tasks.shards import Shards, array, column, columns
from probes.base import Reads
from probes.pairs import TARGET, pairs, rule

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Segments = Literal["each", "joint"]

MEMORY = 2**27  # bytes of float32 latents that are read at once
WHOLE = 2**30  # bytes of latents that are kept in memory between the passes of a training


class Kept:
    """Some rows of features in memory, which answer to the numbers that they have in the cache.

    Args:
        features: of the cache.
        rows: which of them, in any order and as often as they come.
    """

    def __init__(self, features: Shards, rows: Rows) -> None:
        self.numbers = np.unique(rows)
        self.held = features[self.numbers]
        self.shape, self.dtype = features.shape, features.dtype

    def __getitem__(self, rows: Rows) -> NDArray[Any]:
        return self.held[np.searchsorted(self.numbers, rows)]


@dataclass(frozen=True)
class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Windows of latents with a target each; latents are read from the disk when asked for."""

    features: Shards | Kept | NDArray[Any]  # [F,steps*N,D], memory-mapped, or in memory
    rows: Rows  # [n,R] which rows of the cache make an example
    steps: int  # of a row: 1 where rows are frames
    y: Tensor  # float32 [n,K] in raw units, or int64 [n] class numbers
    episode: Rows  # [n] number of the episode in the source
    names: tuple[str, ...]  # K names of the target dimensions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        """``z [n,T,N,D]`` float32 and ``y`` of the examples ``index`` (a list, an array or a slice); T is R * steps."""
        z, y = self.stored(index)
        return z.float(), y

    def stored(self, index: Any) -> tuple[Tensor, Tensor]:
        """As ``examples[index]``, but the latents are of the cache's precision, which takes less memory."""
        rows = self.rows[index]
        z = torch.from_numpy(np.asarray(self.features[rows]))
        # One number tells in most cases: looking at each takes several times as long.
        if not z.sum(dtype=torch.float32).isfinite() and not z.isfinite().all():
            bad = rows[~z.flatten(1).isfinite().all(1).numpy()][0, 0]
            raise InputError(f"the feature cache holds NaN or infinity near row {bad}: remove it and embed again")
        return z.unflatten(2, (self.steps, -1)).flatten(1, 2), self.y[index]

    @property
    def affordable(self) -> int:
        """How many examples can be in memory at once."""
        of_one = 4 * self.rows.shape[1] * int(np.prod(self.features.shape[1:]))
        return max(1, MEMORY // of_one)

    def whole(self, budget: int = WHOLE) -> Examples:
        """The same examples with their latents in memory, where these take at most so many bytes there; else as they
        are. For those who go through them more than once."""
        of_one = int(np.prod(self.features.shape[1:])) * self.features.dtype.itemsize
        if isinstance(self.features, Kept) or len(np.unique(self.rows)) * of_one > budget:
            return self
        return replace(self, features=Kept(self.features, self.rows))

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
        self.offsets: Rows = array(self.path / OFFSETS)
        self.numbers: Rows = np.array([n for part in self.meta["splits"].values() for n in part], dtype=np.int64)
        if len(self.features) != self.offsets[-1] or len(self.offsets) != len(self.numbers) + 1:
            raise InputError(f"{self.path} is damaged, its arrays disagree in length: remove it and embed again")

    def column(self, name: str) -> Shards:
        """``[F,...]``: features, action, proprio, state, reward, terminated; of clips start, segment and view.

        Memory-mapped: rows are read where it is indexed by them.
        """
        return column(self.path, name, self.meta)

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
        self,
        split: str,
        target: str,
        reads: Reads = "frame",
        classes: int = 0,
        reach: int = 16,
        seed: int = 0,
        segments: Segments = "each",
    ) -> Examples:
        """What a probe learns or is tested on.

        With k the frame skip that the world was trained with, the example at frame t holds z_t ("frame"), z_t and
        z_t+k ("next"), or z_t and z_goal ("goal"), where the goal is the frame j * k later in the same episode and j is
        drawn evenly from 1 to ``reach`` (or to the end of the episode). Of videos, clips take the place of frames.

        Args:
            split: name of a split of the cache.
            target: comma-separated names: a state or proprio dimension, a whole column (state, proprio), action (the
                block of k actions from t on) or reward (their sum); map, the labels of the tokens of clips; or success,
                whether a goal nearby is reached, by the rule of the environment.
            reads: what one example holds.
            classes: number of classes when the target is a class number, else 0.
            reach: how far goals may lie, in steps of k frames.
            seed: of the goals.
            segments: each makes every clip of a video an example; joint puts the segments that were seen through one
                view one after another, as one example.
        """
        check_choice("segments", segments, ("each", "joint"))
        if target == TARGET:
            return self._successes(split, reach, seed)
        names = [name.strip() for name in target.split(",")]
        # a label of that name, as the actions that are anticipated have, is of the frame itself
        ahead = {"action", "reward"} - set(self.specs.observation.state_names)
        forward = reads != "frame" or bool(ahead & set(names))
        rows, episode, last = self._origins(split, self.specs.action.block if forward else 0)
        if names == ["map"]:
            return self._mapped(rows, episode, segments)
        columns = [self._target(name, rows) for name in names]
        y = torch.from_numpy(np.concatenate([value for value, _ in columns], axis=1).astype(np.float32))
        labels = tuple(label for _, part in columns for label in part)
        if not y.isfinite().all():
            raise InputError(f"target {target} holds NaN or infinity in split {split}: choose another")
        y = class_numbers(y, target, classes) if classes else y
        if segments == "joint":
            window, first = self._joint(rows, episode)
            return Examples(self.features, window, self.meta["steps"], y[first], episode[first], labels)
        window = self._windows(rows, last, reads, reach, seed)
        return Examples(self.features, window, self.meta["steps"], y, episode, labels)

    def _successes(self, split: str, reach: int, seed: int) -> Examples:
        """Frames with goals, as many that are reached as ones that are not: see :mod:`probes.pairs`."""
        episodes, reach = self.episodes(split), reach * self.specs.action.block
        bounds = [(int(self.offsets[e]), int(self.offsets[e + 1])) for e in episodes]
        rows, y = pairs(self.column("state"), bounds, rule(self.specs), reach, seed)
        place = np.searchsorted(self.offsets, rows[:, 0], side="right") - 1
        return Examples(self.features, rows, self.meta["steps"], y, self.numbers[place], (TARGET,))

    def _mapped(self, rows: Rows, episode: Rows, segments: Segments) -> Examples:
        """The labels of all tokens: uint8 class numbers, 255 for none, or float32, NaN for none ``[n,T*N]``."""
        if segments != "each":
            raise InputError("target map is that of single clips: set segments to each")
        y = torch.from_numpy(np.asarray(self.column("map")[rows]))
        return Examples(self.features, rows[:, None], self.meta["steps"], y, episode, ("map",))

    def _joint(self, rows: Rows, episode: Rows) -> tuple[Rows, Rows]:
        """The segments ``[n,R]`` of every video and view in their order, and the place in ``rows`` of each first one.

        Videos of which a segment is missing are left out.
        """
        if missing := [name for name in ("segment", "view") if name not in columns(self.path)]:
            raise InputError(
                f"segments=joint, but {self.path} has no column {missing[0]}, which tells the clips of a video apart: "
                "embed clips of videos, or set segments to each"
            )
        segment, view = (np.asarray(self.column(name)[rows]) for name in ("segment", "view"))
        order = np.lexsort((segment, view, episode))
        count = int(segment.max()) + 1
        videos = np.stack([episode, view])[:, order]
        _, group, sizes = np.unique(videos, axis=1, return_inverse=True, return_counts=True)
        whole = order[(sizes == count)[group.reshape(-1)]]
        if len(whole) < len(order):
            log.warning("%d clips of %s are left out: not all %d segments", len(order) - len(whole), self.path, count)
        if len(whole) == 0:
            raise InputError(f"no video of {self.path} has all {count} segments: set segments to each, or embed again")
        places = whole.reshape(-1, count)
        return rows[places], places[:, 0]

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


def class_numbers(y: Tensor, target: str, classes: int) -> Tensor:
    """Values ``[n,1]`` as class numbers int64 ``[n]``; InputError where they are none."""
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
