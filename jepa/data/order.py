"""The order of the training windows: a pure function of seed and epoch, so that a killed fit goes on exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from jepa.data.clips import collate
from jepa.errors import InputError, check_least


class EpochOrder(DistributedSampler):
    """Window numbers of one epoch, for one of ``ranks`` processes.

    The order of the epoch is drawn from (seed, epoch) alone, and rank r takes every ``ranks``-th number from r on: the
    ranks share no place of it. A DistributedSampler in name, since Lightning leaves those as they are and calls their
    ``set_epoch``.

    Args:
        windows: How many windows there are.
        count: Windows of an epoch, drawn with replacement; None takes each window once.
        seed: Seed of the order.
        rank: Number of this process.
        ranks: Number of processes.
        whole: Windows of a process that an epoch has a multiple of: those of an optimiser step.
    """

    def __init__(
        self, windows: int, count: int | None = None, seed: int = 0, rank: int = 0, ranks: int = 1, whole: int = 1
    ) -> None:
        super().__init__(range(windows), num_replicas=ranks, rank=rank, seed=seed)
        self.windows, self.count, self.whole, self.skip = windows, count, whole, 0

    @property
    def share(self) -> int:
        """Windows of an epoch for each process, before those are left out that make no whole step."""
        return (self.count or self.windows) // self.num_replicas

    def __len__(self) -> int:
        return self.share // self.whole * self.whole

    def __iter__(self) -> Iterator[int]:
        """From the ``skip``-th number of this rank on."""
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.integers(self.windows, size=self.count) if self.count else random.permutation(self.windows)
        mine = order[self.rank :: self.num_replicas][: len(self)]
        return iter(mine[self.skip :].tolist())


def step_size(trainer: Trainer | None, batch_size: int, drop_last: bool) -> int:
    """Items that one process takes for an optimiser step; 1 where the last step of an epoch may have fewer.

    At the end of an epoch Lightning makes a step of whatever was accumulated: that of fewer batches would be shorter
    than the others, since the gradient of each is divided by the number of all."""
    batches = check_least("accumulate_grad_batches", trainer.accumulate_grad_batches, 1) if trainer else 1
    return batch_size * batches if drop_last else 1


def check_filled(order: DistributedSampler, items: str, batch_size: int) -> None:
    """InputError where an order, an :class:`EpochOrder` or what has its ``share`` and ``whole``, is empty."""
    if len(order) == 0:
        step = f"batch of {batch_size}"
        if order.whole > batch_size:
            step = f"optimiser step of {order.whole} ({order.whole // batch_size} batches are accumulated)"
        raise InputError(
            f"{order.share} training {items} a device fill no {step}; use a smaller batch_size, more "
            f"{items}_per_epoch or drop_last=False"
        )


def regroup(fit_loop: dict[str, Any], data: LightningDataModule, ranks: int) -> None:
    """Change what a checkpoint says of its place in an epoch, counted in batches, to batches of another size or of
    another number of processes: so many items of the epoch are done, whoever takes the next ones.

    Args:
        fit_loop: The state of Lightning's fit loop. Changed in place, where it has that of one ResumableLoader.
        data: Has the ``batch_size`` from now on.
        ranks: Processes from now on.

    Raises:
        InputError: the place lies within such a batch.
    """
    states = fit_loop["state_dict"].get("combined_loader") or []
    if len(states) != 1 or "items" not in states[0]:  # another loader, or an older checkpoint, which does not tell
        return
    loader, now = states[0], data.batch_size * ranks
    items = loader["batch"] * loader["items"]
    done, rest = divmod(items, now)
    if rest:
        raise InputError(
            f"the checkpoint lies {items} items into an epoch, within a batch of {data.batch_size} on {ranks} "
            "processes; choose a size and a number that divide it, or go on from another checkpoint"
        )
    moved = done - loader["batch"]
    loader |= {"batch": done, "items": now}
    current = fit_loop["epoch_loop.batch_progress"]["current"]
    for name in current:
        current[name] += moved


class ResumableLoader(DataLoader):
    """A DataLoader that Lightning saves with its checkpoints, and that goes on with the next batch of the same epoch.

    What was handed out counts, not what workers fetched ahead: ``items`` of it in every batch of all processes. A pass
    begins at its first ``next``, since Lightning makes the iterator before it knows the epoch.

    Args:
        dataset: The windows.
        order: Their order, an :class:`EpochOrder` or what has its ``skip`` and ``set_epoch``: both are set here.
        batch_size: Windows of a batch.
        epoch: Gives the number of the present epoch. Not what Lightning calls ``set_epoch`` with: with ``max_steps``,
            that is one too high after a resume from a checkpoint of an epoch's end (Lightning 2.6).
        options: Of the DataLoader.
    """

    def __init__(
        self, dataset: Dataset, order: DistributedSampler, batch_size: int, epoch: Callable[[], int], **options: Any
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=order, **{"collate_fn": collate} | options)
        self._present = epoch
        self._epoch = self._batch = 0
        self._resumed: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self._from_here()

    def _from_here(self) -> Iterator[Any]:
        self._epoch, self._batch = self._present(), 0
        if self._resumed is not None and self._resumed[0] == self._epoch:
            self._batch = self._resumed[1]
        self._resumed = None
        self.sampler.set_epoch(self._epoch)
        self.sampler.skip = self._batch * self.batch_size
        for batch in super().__iter__():
            self._batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch, "items": self.batch_size * self.sampler.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resumed = (state["epoch"], state["batch"])
