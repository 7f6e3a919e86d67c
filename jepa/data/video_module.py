"""The data side of masked pretraining: datasets of videos and images, mixed by weight, as batches of random clips."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import ConcatDataset, Dataset, Subset

from jepa.data.clip_loading import EvaluationLoader, TrainingLoader
from jepa.data.clips import split
from jepa.data.crops import Pixels
from jepa.data.guard import Guard
from jepa.data.index import VideoIndex
from jepa.data.mixture import Mixture, MixtureOrder
from jepa.data.order import check_filled, step_size
from jepa.data.video_clips import VideoClips, VideoSource, labels_of
from jepa.errors import InputError, check_least
from jepa.schema import ActionSpec, ObservationSpec, Specs

Part = Literal["train", "val", "test", "all"]
PARTS = ("train", "val", "test")


class VideoData(LightningDataModule):
    """Clips of several datasets of videos: a batch is a list of :class:`jepa.schema.Sample`, one for every number of
    frames among its clips, ascending, with uint8 pixels and the key of every clip.

    In training a file that cannot be read is named in the log and replaced by another of its dataset; in validation
    and test its clip is left out and named. What stands in a training batch is a pure function of seed, epoch and
    place: the same for any number of workers and of devices, and after a resume. Every device evaluates all clips of
    the validation, so that its numbers are those of one device.

    Args:
        sources: The datasets to train on.
        val: Datasets to validate on; a part of the training videos if null.
        test: Datasets to test on; a part of the training videos if null.
        splits: Parts of the videos for training, validation and test. Where ``val`` or ``test`` is given, its part
            trains too.
        size: Height and width of the clips: one number, or two.
        batch_size: Clips of a batch, on each device.
        workers: Processes that decode ahead; 0 decodes in the training process.
        clips_per_epoch: Clips of a training epoch, over all devices, drawn with replacement. If null, the clips of one
            dataset are permuted, each once; of several, so many are drawn as there are.
        val_clips: Clips of the validation and of the test, spread evenly; all of them if null.
        seed: Seed of the split and of all draws.
        flip: Mirror every other training clip. Not where labels tell left from right.
        scale: Smallest and largest part of a frame's area that a random crop takes.
        aspect: Smallest and largest width to height of a random crop.
        short: What becomes of videos that are shorter than a clip: "skip" leaves them out, "repeat" repeats their last
            frame, as published.
        time_limit: Seconds after which the reading of a clip is given up; null waits for ever.
        drop_last: Leave out the last training batch when it is not full, and the last ones that fill no optimiser step
            where gradients are accumulated.
    """

    def __init__(
        self,
        sources: list[VideoSource],
        val: list[VideoSource] | None = None,
        test: list[VideoSource] | None = None,
        splits: tuple[float, float, float] = (0.9, 0.05, 0.05),
        size: int | tuple[int, int] = 224,
        batch_size: int = 24,
        workers: int = 2,
        clips_per_epoch: int | None = None,
        val_clips: int | None = None,
        seed: int = 0,
        flip: bool = True,
        scale: tuple[float, float] = (0.3, 1.0),
        aspect: tuple[float, float] = (0.75, 1.35),
        short: Literal["skip", "repeat"] = "skip",
        time_limit: float | None = 60.0,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        if not sources:
            raise InputError("sources is empty, expected at least one dataset with a path")
        check_least("workers", workers, 0)
        check_least("batch_size", batch_size, 1)
        check_least("clips_per_epoch", clips_per_epoch, 1)
        check_least("val_clips", val_clips, 1)
        check_least("seed", seed, 0)
        self.sources = {"train": sources, "val": val, "test": test}
        self.splits, self.batch_size, self.workers, self.seed = splits, batch_size, workers, seed
        self.clips_per_epoch, self.val_clips, self.drop_last = clips_per_epoch, val_clips, drop_last
        self.reading = {"pixels": Pixels(size, scale, aspect, flip), "short": short, "time_limit": time_limit}
        self.failed: dict[str, str] = {}  # file -> reason, of all that could not be read so far
        self._guard = Guard(time_limit)
        self._indices: dict[tuple[str, str, str], VideoIndex] = {}
        self._parts: dict[Part, list[VideoClips]] = {}

    @property
    def specs(self) -> Specs:
        """The size of the clips, and the labels that all datasets share."""
        seen = ObservationSpec(*self.reading["pixels"].shape, state_names=self._labels(self.sources["train"]))
        return Specs(ActionSpec((), (), (), ()), seen)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames of the training clips, ascending: what a batch may hold."""
        return tuple(sorted({source.frames for source in self.sources["train"]}))

    def clips(self, part: Part) -> VideoClips:
        """The clips of the one dataset of a part; item by item they are evenly placed and centred."""
        if len(parts := self.parts(part)) > 1:
            listed = ", ".join(clips.source.path for clips in parts)
            raise InputError(f"{part} has {len(parts)} datasets ({listed}), expected one: name one in sources")
        return parts[0]

    def parts(self, part: Part) -> list[VideoClips]:
        """The clips of every dataset of a part of the split; of "all" videos of the training datasets."""
        if part not in self._parts:
            sources = self.sources.get(part) or self.sources["train"]
            labels = self._labels(sources)
            made = []
            for source in sources:
                index = self._index(source)
                if len(rows := self._rows(part, index)):
                    made.append(VideoClips(source, index, rows, labels, **self.reading))
            if not made:
                raise InputError(
                    f"the {part} split of {sources[0].path} is empty (splits are {list(self.splits)}): "
                    f"give {part} its own datasets, or change splits"
                )
            for clips in made:
                clips.guard = self._guard  # a worker needs one child for all datasets
            self._parts[part] = made
        return self._parts[part]

    def train_dataloader(self) -> TrainingLoader:
        parts = self.parts("train")
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sizes, weights = [len(clips) for clips in parts], [clips.source.weight for clips in parts]
        whole = step_size(self.trainer, self.batch_size, self.drop_last)
        order = MixtureOrder(sizes, weights, self.clips_per_epoch, self.seed, rank, ranks, whole)
        check_filled(order, "clips", self.batch_size)
        options = {"drop_last": self.drop_last} | self._workers()
        return TrainingLoader(Mixture(parts), order, self.batch_size, self._epoch, self.failed, **options)

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        return self._fixed("val") if self.sources["val"] or self.splits[1] else []

    def test_dataloader(self) -> EvaluationLoader:
        return self._fixed("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """The evenly placed clips of all videos, in order."""
        return self.loader(ConcatDataset(self.parts("all")))

    def loader(self, clips: Dataset, read: int = 0) -> EvaluationLoader:
        """Evenly placed clips as batches, in order; those that cannot be read are left out, named and in ``failed``.
        ``read`` counts clips before these, which another process read."""
        return EvaluationLoader(clips, self.batch_size, self.failed, read, **self._workers())

    def _fixed(self, part: Literal["val", "test"]) -> EvaluationLoader:
        clips = ConcatDataset(self.parts(part))
        count = min(self.val_clips or len(clips), len(clips))
        evenly = np.linspace(0, len(clips) - 1, count).round().astype(int)
        # in one fixed order that mixes the videos: the spread within a batch is part of some objectives
        return self.loader(Subset(clips, np.random.default_rng(self.seed).permutation(evenly).tolist()))

    def _rows(self, part: Part, index: VideoIndex) -> np.ndarray:
        """Rows of the index that belong to a part: all, of datasets that were given for it."""
        if part == "all" or (part != "train" and self.sources[part]):
            return index.readable
        val, test = (0.0 if self.sources[name] else share for name, share in zip(PARTS[1:], self.splits[1:]))
        paths = [index.path[row] for row in index.readable.tolist()]
        files = list(dict.fromkeys(paths))  # of actions, a file has several rows: they stay together
        chosen = {files[n] for n in split(files, (1 - val - test, val, test), self.seed)[PARTS.index(part)]}
        return index.readable[np.array([path in chosen for path in paths], dtype=bool)]

    def _labels(self, sources: list[VideoSource]) -> tuple[str, ...]:
        """Those that all sources have, in the order of the first."""
        names = [labels_of(source, self._index(source)) for source in sources]
        return tuple(name for name in names[0] if all(name in others for others in names))

    def _index(self, source: VideoSource) -> VideoIndex:
        """Opened once, at the first use."""
        key = (source.path, source.decoder, repr(source.actions))
        if key not in self._indices:
            self._indices[key] = source.open(max(1, self.workers), self.reading["time_limit"])
        return self._indices[key]

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer else 0

    def _workers(self) -> dict[str, Any]:
        pinned = torch.cuda.is_available()
        return {"num_workers": self.workers, "persistent_workers": self.workers > 0, "pin_memory": pinned}
