"""Datasets drawn by weight: which clip stands at which place of an epoch, and what stands in for a broken file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count as counted
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from jepa.data.random import bits, fold, unit
from jepa.data.video_clips import Failure, VideoClips
from jepa.errors import InputError
from jepa.schema import Sample

SOURCE, ITEM, STAND_IN = range(3)  # purposes for which a key is folded
PLACES = 40  # bits of the place in the epoch; the epoch stands above them
CHUNK = 4096  # places that are drawn at once
TRIES = 32  # files of a source that may fail one after the other before it counts as broken


class Draw(NamedTuple):
    """One place of an epoch."""

    source: int
    item: int
    key: int


class MixtureOrder(DistributedSampler):
    """The clips of one epoch, for one of ``ranks`` processes, each with a key that no other place of the run has.

    What stands at place p is a hash of (seed, epoch, p), drawn with replacement by weight: nothing is drawn for the
    places of other processes, and no list of the epoch exists. Rank r takes the places r, r + ranks, ...: the batches
    of all ranks together are those of one process with the joint batch. A single source without ``count`` is
    permuted instead: each of its clips once. A DistributedSampler in name, for Lightning (see EpochOrder).

    Args:
        sizes: Clips of each source.
        weights: How often each is drawn, up to a factor.
        count: Clips of an epoch over all processes; None is the number of all clips.
        seed: Seed of the order and of the keys.
        rank: Number of this process.
        ranks: Number of processes.
        whole: Clips of a process that an epoch has a multiple of: those of an optimiser step.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        count: int | None = None,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        whole: int = 1,
    ) -> None:
        self.total = count or sum(sizes)
        super().__init__(range(self.total), num_replicas=ranks, rank=rank, seed=seed)
        self.sizes, self.whole, self.skip = np.asarray(sizes), whole, 0
        self.ends = np.cumsum(weights) / np.sum(weights)
        self.permuted = count is None and len(self.sizes) == 1

    @property
    def share(self) -> int:
        """Clips of an epoch for each process, before those are left out that make no whole step."""
        return self.total // self.num_replicas

    def __len__(self) -> int:
        return self.share // self.whole * self.whole

    def __iter__(self) -> Iterator[Draw]:
        """From the ``skip``-th clip of this rank on."""
        permutation = np.random.default_rng((self.seed, self.epoch)).permutation(self.total) if self.permuted else None
        for first in range(self.skip, len(self), CHUNK):
            mine = np.arange(first, min(first + CHUNK, len(self)))
            yield from map(Draw._make, self.at(mine * self.num_replicas + self.rank, permutation).tolist())

    def at(self, places: np.ndarray, permutation: np.ndarray | None = None) -> np.ndarray:
        """Source, item and key of places of this epoch, int64 [P,3]."""
        key = bits(self.seed, (self.epoch << PLACES) | places)
        if permutation is not None:
            source, item = np.zeros(len(places), np.int64), permutation[places]
        else:
            # weights that sum to just below 1 must not give a source behind the last
            source = np.minimum(self.ends.searchsorted(unit(fold(key, SOURCE)), side="right"), len(self.sizes) - 1)
            item = (unit(fold(key, ITEM)) * self.sizes[source]).astype(np.int64)
        return np.stack([source, item, key.astype(np.int64)], axis=1)


class Mixture(Dataset):
    """Random clips of several sources, by :class:`Draw`.

    A file that cannot be read is replaced by another of the same source, which follows from the key of the draw: the
    batch stays full, and is the same in every process that draws it. Files that failed are not tried again.
    """

    def __init__(self, parts: Sequence[VideoClips]) -> None:
        self.parts = list(parts)
        self._failed: list[set[int]] = [set() for _ in self.parts]  # rows, known to this process

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample | Failure]:
        """One sample for each draw, and the failures met on the way to it; a fatal one when its source is broken."""
        return [one for draw in draws for one in self._draw(*draw)]

    def _draw(self, source: int, item: int, key: int) -> Iterator[Sample | Failure]:
        clips, failed = self.parts[source], self._failed[source]
        tries = 0
        for attempt in counted():
            if (row := int(clips.rows[item])) not in failed:
                try:
                    yield clips.draw(item, key)
                    return
                except InputError as error:
                    failed.add(row)
                    tries += 1
                    yield Failure(str(clips.where(item)), str(error))
            if tries == TRIES or len(failed) == clips.videos:
                yield Failure(clips.source.path, f"none of {tries or len(failed)} videos can be read", fatal=True)
                return
            item = int(unit(fold(fold(key, STAND_IN), attempt)) * len(clips))
