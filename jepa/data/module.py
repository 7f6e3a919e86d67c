"""The data side of every run: one file of episodes, split by episode, as batches of windows."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Subset

from jepa.data.clips import Clips, collate, split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.data.order import EpochOrder, ResumableLoader, check_filled, step_size
from jepa.data.transforms import random_shift, resize
from jepa.data.video import ENDINGS, VideoEpisodes
from jepa.errors import InputError, check_least
from jepa.schema import Episodes, Sample, Specs

log = logging.getLogger(__name__)


class EpisodeData(LightningDataModule):
    """Windows of the episodes of one file, as batches of :class:`jepa.schema.Sample` with uint8 pixels.

    The training order is a pure function of seed and epoch: a killed fit resumes with the very batch that came next.

    Args:
        path: HDF5 file of episodes, written by ``jepa collect`` or by stable-worldmodel; or a video file, a folder of
            them, an index (.parquet) or a list (.csv), whose episodes have no actions (to embed).
        frames: Frames of a window.
        frame_skip: Environment steps from one frame to the next; their actions are concatenated.
        batch_size: Windows of a batch, on each device.
        workers: Processes that read ahead; 0 reads in the training process, which is best with ``memory``.
        memory: Load the file into memory once.
        splits: Parts of the episodes for training, validation and test.
        seed: Seed of the split, the order, the goals and the shifts.
        windows_per_epoch: Windows of a training epoch, drawn with replacement, over all devices; each one once if null.
        val_windows: Windows of the validation and of the test, spread evenly over the split; all of them if null.
        goal: Add a goal frame to each window: "future" (behind the window), "last" (of the episode) or "none".
        columns: Fields to read; all that the file has if null.
        history: Frames that a model may start from; kept in the specs.
        size: Height and width to which the device resizes the frames; as stored if null.
        shift: Training windows are shifted by up to so many pixels at random, all frames alike.
        drop_last: Leave out the last training batch when it is not full, and the last ones that fill no optimiser step
            where gradients are accumulated.
    """

    def __init__(
        self,
        path: str,
        frames: int = 9,
        frame_skip: int = 1,
        batch_size: int = 128,
        workers: int = 0,
        memory: bool = True,
        splits: tuple[float, float, float] = (0.9, 0.05, 0.05),
        seed: int = 0,
        windows_per_epoch: int | None = None,
        val_windows: int | None = None,
        goal: Literal["none", "future", "last"] = "none",
        columns: tuple[str, ...] | None = None,
        history: int = 1,
        size: int | None = None,
        shift: int = 0,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        check_least("workers", workers, 0)
        check_least("batch_size", batch_size, 1)
        check_least("windows_per_epoch", windows_per_epoch, 1)
        check_least("val_windows", val_windows, 1)
        check_least("seed", seed, 0)
        self.path, self.batch_size, self.workers, self.memory = path, batch_size, workers, memory
        self.splits, self.seed, self.size, self.shift, self.drop_last = splits, seed, size, shift, drop_last
        self.windows_per_epoch, self.val_windows = windows_per_epoch, val_windows
        self.windowing = {"frames": frames, "frame_skip": frame_skip, "goal": goal, "columns": columns}
        self.windowing |= {"history": history, "seed": seed}
        self._episodes: Episodes | None = None

    @property
    def episodes(self) -> Episodes:
        """The store, opened and checked at the first use."""
        if self._episodes is None:
            path = Path(self.path)
            filmed = path.is_dir() or path.suffix.lower() in (*ENDINGS, ".parquet", ".csv")
            self._episodes = VideoEpisodes(path, self.size) if filmed else Hdf5Episodes(path, memory=self.memory)
        return self._episodes

    @property
    def specs(self) -> Specs:
        """What a model of these batches must know: the block of actions, the size of the resized frames."""
        stored = self.episodes.specs
        seen = replace(stored.observation, height=self.size, width=self.size) if self.size else stored.observation
        return replace(
            stored,
            action=replace(stored.action, block=self.windowing["frame_skip"]),
            observation=seen,
            evaluation=replace(stored.evaluation, history=self.windowing["history"]),
        )

    def clips(self, part: Literal["train", "val", "test", "all"]) -> Clips:
        """Every window of one part of the split; of "all" episodes, windows side by side that do not overlap."""
        if part == "all":
            side_by_side = self.windowing["frames"] * self.windowing["frame_skip"]
            return Clips(self.episodes, stride=side_by_side, **self.windowing)
        numbers = dict(zip(("train", "val", "test"), split(self.episodes, self.splits, self.seed)))[part]
        if not numbers:
            raise InputError(f"the {part} split of {self.path} is empty ({len(self.episodes)} episodes, {self.splits})")
        return Clips(self.episodes, numbers, **self.windowing)

    def train_dataloader(self) -> ResumableLoader:
        clips = self.clips("train")
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        whole = step_size(self.trainer, self.batch_size, self.drop_last)
        order = EpochOrder(len(clips), self.windows_per_epoch, self.seed, rank, ranks, whole)
        check_filled(order, "windows", self.batch_size)
        options = {"drop_last": self.drop_last} | self._workers()
        return ResumableLoader(clips, order, self.batch_size, self._epoch, **options)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._fixed("val") if self.splits[1] else []

    def test_dataloader(self) -> DataLoader:
        return self._fixed("test")

    def predict_dataloader(self) -> DataLoader:
        """All episodes in order, windows side by side."""
        return DataLoader(self.clips("all"), batch_size=self.batch_size, collate_fn=collate, **self._workers())

    def _fixed(self, part: Literal["val", "test"]) -> DataLoader:
        clips = self.clips(part)
        count = min(self.val_windows or len(clips), len(clips))
        evenly = np.linspace(0, len(clips) - 1, count).round().astype(int)
        # in one fixed order that mixes episodes: the spread within a batch is part of some objectives
        mixed = np.random.default_rng(self.seed).permutation(evenly).tolist()
        return DataLoader(Subset(clips, mixed), batch_size=self.batch_size, collate_fn=collate, **self._workers())

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0

    def _workers(self) -> dict[str, object]:
        return {"num_workers": self.workers, "persistent_workers": self.workers > 0}

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Resize, and shift while training. The pixels stay uint8: models normalise."""
        batch = self._resized(batch) if self.size else batch
        if not (self.shift and self.trainer and self.trainer.training):
            return batch
        place = (self.seed, self.trainer.global_step, self.trainer.global_rank)
        random = torch.Generator().manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        return replace(batch, video=random_shift(batch.video, self.shift, random))

    def _resized(self, batch: Sample) -> Sample:
        goal = self._resized(batch.goal) if batch.goal is not None else None
        return replace(batch, video=resize(batch.video, self.size), goal=goal)
