"""Batches of clips on their way from the workers: several lengths side by side, and what could not be read, counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from jepa.data.mixture import Mixture, MixtureOrder
from jepa.data.order import ResumableLoader
from jepa.data.video_clips import Failure
from jepa.errors import InputError
from jepa.schema import Sample

log = logging.getLogger(__name__)


class ClipBatch(NamedTuple):
    """What a worker hands over: one batched sample for every number of frames, ascending, and what failed."""

    samples: list[Sample]
    failures: list[Failure]

    def pin_memory(self) -> ClipBatch:
        return self._replace(samples=[sample.map(Tensor.pin_memory) for sample in self.samples])


def collate(items: Sequence[Sample | Failure]) -> ClipBatch:
    """Clips of several lengths, and failures between them, to one batch."""
    samples = [item for item in items if isinstance(item, Sample)]
    lengths = sorted({len(sample.video) for sample in samples})
    groups = [[sample for sample in samples if len(sample.video) == length] for length in lengths]
    return ClipBatch([_stack(group) for group in groups], [item for item in items if isinstance(item, Failure)])


def _stack(samples: list[Sample]) -> Sample:
    """Pixels stay as they lie in memory, channels last: the copy is a plain one."""
    video = torch.stack([sample.video.permute(0, 2, 3, 1) for sample in samples]).permute(0, 1, 4, 2, 3)
    return replace(Sample.stack([replace(sample, video=None) for sample in samples]), video=video)


class TrainingLoader(ResumableLoader):
    """Random clips as full batches, ``list[Sample]``; a killed fit goes on with the very next one.

    Args:
        mixture: The datasets.
        order: What stands at each place of the epoch.
        batch_size: Clips of a batch.
        epoch: Gives the number of the present epoch.
        failed: Is told every file that could not be read, and why.
        options: Of the DataLoader.
    """

    def __init__(
        self,
        mixture: Mixture,
        order: MixtureOrder,
        batch_size: int,
        epoch: Callable[[], int],
        failed: dict[str, str],
        **options: Any,
    ) -> None:
        super().__init__(mixture, order, batch_size, epoch, collate_fn=collate, **options)
        self._failed = failed

    def __iter__(self) -> Iterator[list[Sample]]:
        return _received(super().__iter__(), self._failed, "replaced by another one")


class EvaluationLoader(DataLoader):
    """Every clip once and in order, as ``list[Sample]``; clips that cannot be read are left out, and named.

    Every process reads all of them: Lightning, which would deal them out and repeat some to come out even, leaves the
    order of a DistributedSampler as it is.

    Args:
        clips: The clips, whose items are samples or failures.
        batch_size: Clips of a batch.
        failed: Is told every file that could not be read, and why.
        read: Clips that were read before these, where a run goes on.
        options: Of the DataLoader.

    Raises:
        InputError: none of the clips can be read, and none was.
    """

    def __init__(
        self, clips: Dataset, batch_size: int, failed: dict[str, str], read: int = 0, **options: Any
    ) -> None:
        order = DistributedSampler(clips, num_replicas=1, rank=0, shuffle=False)
        super().__init__(clips, batch_size=batch_size, sampler=order, collate_fn=collate, **options)
        self._failed, self._read = failed, read

    def __iter__(self) -> Iterator[list[Sample]]:
        read = self._read
        for samples in _received(super().__iter__(), self._failed, "left out"):
            read += sum(len(sample.key) for sample in samples)
            yield samples
        total = self._read + len(self.dataset)
        if not read:
            raise InputError(f"none of {total} clips can be read, {next(iter(self._failed.values()))}; check the files")
        if read < total:
            log.warning("%d of %d clips could not be read and are left out", total - read, total)


def _received(batches: Iterable[ClipBatch], failed: dict[str, str], fate: str) -> Iterator[list[Sample]]:
    """The samples; what failed is counted, and logged at the first time that this process hears of it."""
    for batch in batches:
        for failure in batch.failures:
            if failure.fatal:
                raise InputError(f"{failure.file}: {failure.reason}; check the files")
            if failure.file not in failed:
                failed[failure.file] = failure.reason
                log.warning("%s (number %d that fails) is %s: %s", failure.file, len(failed), fate, failure.reason)
        if batch.samples:
            yield batch.samples
