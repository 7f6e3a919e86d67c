"""Clips of videos as rows of a feature cache: what ``jepa embed`` does with :class:`VideoData`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa.data.anticipation import SECONDS
from jepa.data.maps import maps_digest
from jepa.data.video_clips import Failure, VideoClips
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.schema import Sample, Specs
from jepa.tasks import latents
from jepa.tasks.construction import Construction
from jepa.tasks.encoding import Batch, write_rows
from jepa.tasks.features import checkpoint_hash, exists, fingerprint, software
from jepa.tasks.latents import Embeds, Settings

log = logging.getLogger(__name__)

DISTRIBUTIONS = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec"}  # decoder -> what its version is of


class Portion(NamedTuple):
    """The first ``count`` clips of a dataset: they go to a split."""

    split: str
    clips: VideoClips
    count: int

    @property
    def rows(self) -> np.ndarray:
        """Of the index, one for each video."""
        return self.clips.rows[: self.count : self.clips.source.clips]


class Numbered(Dataset):
    """Clips of a portion, in all their views; the key of each is its number in the portion.

    Args:
        portion: the clips.
        numbers: which of them.
        lost: numbers of clips that are not tried, and their files.
    """

    def __init__(self, portion: Portion, numbers: np.ndarray, lost: dict[int, str]) -> None:
        self.clips, self.numbers, self.lost = portion.clips, numbers, lost

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Sample | Failure:
        number = int(self.numbers[place])
        if number in self.lost:
            return Failure(self.lost[number], "it could not be read when this cache was begun")
        sample = self.clips.views(number)
        return sample if isinstance(sample, Failure) else replace(sample, key=torch.tensor(number))


class ClipRows:
    """All clips of some portions, one after the other: :class:`jepa.tasks.encoding.Rows`.

    An item is a view of a clip: those of a clip lie together, those of a video too. Clips fail as a whole.

    Args:
        data: what loads clips.
        portions: of the splits.
        specs: what all clips have in common.
    """

    unit = "clips"

    def __init__(self, data: VideoData, portions: Sequence[Portion], specs: Specs) -> None:
        self.data, self.portions, self.specs = data, portions, specs
        self.views = portions[0].clips.source.views
        self.begins = np.cumsum([0, *(portion.count * self.views for portion in portions)])
        self.total = int(self.begins[-1])

    def example(self) -> Batch:
        """All black, but for the sizes like any other: nothing is read."""
        clips, seen = self.portions[0].clips, self.specs.observation
        size = (clips.timing.frames, seen.channels, seen.height, seen.width)
        labels = torch.zeros(1, size[0], len(clips.labels)) if clips.labels else None
        video, index = torch.zeros(1, *size, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64)
        ahead = None if clips.source.actions is None else torch.zeros(1)
        maps = None if clips.source.maps is None else torch.zeros(1, *size[:1], *size[2:])
        sample = Sample(video, state=labels, index=index, ahead=ahead, maps=maps)
        return Batch(np.arange(1), sample, self._columns(self.portions[0], sample, np.zeros(1, np.int64), np.arange(1)))

    def batches(self, begin: int, left_out: dict[int, str]) -> Iterator[Batch]:
        for number, portion in enumerate(self.portions):
            first, end = self.begins[number], self.begins[number + 1]
            if begin < end:
                yield from self._portion(portion, int(first), max(0, begin - int(first)) // self.views, left_out)

    def _portion(self, portion: Portion, first: int, begin: int, left_out: dict[int, str]) -> Iterator[Batch]:
        """The clips of a portion whose first item is ``first``, from the batch on in which clip ``begin`` lies."""
        lost = {(item - first) // self.views: file for item, file in left_out.items() if item >= first}
        begin -= begin % self.data.batch_size
        seen = begin
        clips = Numbered(portion, np.arange(begin, portion.count), lost)
        for samples in self.data.loader(clips, begin):
            for sample in samples:
                here = sample.key.numpy()
                missing = np.setdiff1d(np.arange(seen, here[-1] + 1), here)
                seen = int(here[-1]) + 1
                yield from self._split(portion, first, sample, self._missing(portion, first, missing, lost))
        missing = self._missing(portion, first, np.arange(seen, portion.count), lost)
        yield Batch(np.zeros(0, np.int64), Sample(), {}, missing)

    def _missing(self, portion: Portion, first: int, clips: np.ndarray, lost: dict[int, str]) -> dict[int, str]:
        """The items of these clips, but for those that are known to be lost."""
        files = {clip: str(portion.clips.where(clip)) for clip in clips.tolist() if clip not in lost}
        return {first + clip * self.views + view: files[clip] for clip in files for view in range(self.views)}

    def _split(self, portion: Portion, first: int, sample: Sample, missing: dict[int, str]) -> Iterator[Batch]:
        """Clips in all views, as batches of single views that are no larger than a batch of clips."""
        clips, view = sample.key.numpy().repeat(self.views), np.tile(np.arange(self.views), len(sample.key))
        sample = self._apart(sample)
        for start in range(0, len(clips), self.data.batch_size):
            some = slice(start, start + self.data.batch_size)
            part = sample.map(lambda value: value[some])  # noqa: B023
            columns = self._columns(portion, part, clips[some], view[some])
            yield Batch(first + clips[some] * self.views + view[some], part, columns, missing if start == 0 else {})

    def _apart(self, sample: Sample) -> Sample:
        """``[B,views*T,...]`` to ``[B*views,T,...]``, and all else as often."""
        if self.views == 1:
            return sample
        video, maps = sample.video, sample.maps
        others = replace(sample, video=None, maps=None).map(lambda value: value.repeat_interleave(self.views, 0))
        apart = [None if x is None else x.unflatten(1, (self.views, -1)).flatten(0, 1) for x in (video, maps)]
        return replace(others, video=apart[0], maps=apart[1])

    def _columns(self, portion: Portion, sample: Sample, clips: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
        """What stands beside the latents: where clips begin, which of a video they are, the labels of their videos."""
        segment = clips % portion.clips.source.clips
        columns = {"start": sample.index[:, 1].numpy(), "segment": segment, "view": view}
        labels = None if sample.state is None else sample.state[:, 0]
        others = {"state": labels, "ahead": sample.ahead, "maps": sample.maps}
        return columns | {name: value.numpy() for name, value in others.items() if value is not None}

    def some(self, items: np.ndarray) -> Iterator[Sample]:
        home = np.searchsorted(self.begins, items, side="right") - 1
        for number in np.unique(home).tolist():
            chosen = np.unique((items[home == number] - self.begins[number]) // self.views)
            for samples in self.data.loader(Numbered(self.portions[number], chosen, {}), 1):
                for sample in samples:
                    yield from (batch.sample for batch in self._split(self.portions[number], 0, sample, {}))

    def encode(self, world: Embeds, sample: Sample, settings: Settings) -> Tensor:
        return latents.encode(world, sample, settings)

    def _clip(self, item: int) -> tuple[Portion, int]:
        number = int(np.searchsorted(self.begins, item, side="right")) - 1
        return self.portions[number], (item - int(self.begins[number])) // self.views

    def name(self, item: int) -> str:
        portion, clip = self._clip(item)
        return str(portion.clips.where(clip))

    def summary(self, left_out: dict[int, str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Videos are numbered as their first clip comes in; those without one are not among them."""
        splits: dict[str, list[int]] = {portion.split: [] for portion in self.portions}
        files, counts = [], []
        for portion, first in zip(self.portions, self.begins.tolist()):
            each = portion.clips.source.clips * self.views
            whole = np.ones(portion.count * self.views, dtype=np.int64)
            whole[[item - first for item in left_out if first <= item < first + len(whole)]] = 0
            last = None
            for row, count in zip(portion.rows.tolist(), whole.reshape(-1, each).sum(1).tolist()):
                if count and portion.clips.index.path[row] == last:  # another action in the same video
                    counts[-1] += count
                elif count:
                    last = portion.clips.index.path[row]
                    splits[portion.split].append(len(files))
                    files.append(last)
                    counts.append(count)
        about = {"splits": splits, "files": files, "left_out": sorted(set(left_out.values()))}
        about["clip"] = asdict(self.portions[0].clips.timing)  # tells a reader which frames follow the first
        return np.cumsum([0, *counts]), about


def write_clips(
    world: Embeds,
    data: VideoData,
    splits: Sequence[str],
    out: Path,
    settings: Settings = Settings(),
    limit: int | None = None,
    checkpoint: str = "",
) -> Path:
    """Encode the evaluation clips of the videos of ``splits`` into the folder ``out``, and return it.

    A row is a clip, an episode is a video, its state are the video's labels. Clips that cannot be read are left out,
    named in the log, and listed in the cache; ``limit`` takes at most so many videos of each split.
    """
    world, settings = latents.prepared(world, settings)
    portions = _portions(data, splits, limit)
    _check_disjoint(portions)
    specs = _shared_specs(portions)
    seen = specs.observation
    latents.check_frames(world, seen.channels, seen.height, seen.width, "set data.size as the encoder's")
    identity = _identity(world, portions, specs, settings)
    source = ", ".join(dict.fromkeys(portion.clips.source.path for portion in portions))
    about = {"checkpoint": checkpoint, "checkpoint_hash": checkpoint_hash(checkpoint), "source": source}
    if exists(out, identity):
        log.info("%s is already the cache of these weights and data", out)
        return out
    decoders = np.concatenate([portion.clips.index.decoder[portion.rows] for portion in portions])
    with Construction(out, identity, software(["pillow", *readers(decoders)]), settings.shard_mb) as build:
        write_rows(world, ClipRows(data, portions, specs), build, settings, about)
    return out


def readers(decoders: np.ndarray) -> list[str]:
    """The distributions that read files of an index, by its decoders of them [n]; those of decord may be PyAV's."""
    return [DISTRIBUTIONS[name] for name in np.unique(decoders).tolist() if name in DISTRIBUTIONS]


def _portions(data: VideoData, splits: Sequence[str], limit: int | None) -> list[Portion]:
    portions = []
    for split in splits:
        left = limit
        for clips in data.parts(split):
            videos = clips.videos if left is None else min(left, clips.videos)
            left = None if left is None else left - videos
            if videos:
                portions.append(Portion(split, clips, videos * clips.source.clips))
    return portions


def _check_disjoint(portions: Sequence[Portion]) -> None:
    home: dict[Path, str] = {}
    for split, clips, rows in ((portion.split, portion.clips, portion.rows) for portion in portions):
        for file in map(clips.index.where, rows.tolist()):
            if home.setdefault(file, split) != split:
                raise InputError(f"{file} belongs to {home[file]} and to {split}: expected one split, change data")


def _shared_specs(portions: Sequence[Portion]) -> Specs:
    """What all clips have in common: their size and their labels. They must be equally long."""
    first = portions[0].clips
    for clips in (portion.clips for portion in portions):
        if clips.source.views != first.source.views:
            raise InputError(
                f"{first.source.path} has {first.source.views} views, {clips.source.path} {clips.source.views}: "
                "expected the same, set views of the sources"
            )
        if clips.timing.frames != first.timing.frames:
            given = f"{first.timing.frames} and {clips.timing.frames}"
            raise InputError(f"clips of {given} frames do not fit into one cache: set equal frames, or embed apart")
        if clips.labels != first.labels:
            raise InputError(
                f"{first.source.path} has the labels {list(first.labels)}, {clips.source.path} {list(clips.labels)}: "
                "expected the same, choose them with labels of the sources"
            )
    return first.specs


def _identity(world: Embeds, portions: Sequence[Portion], specs: Specs, settings: Settings) -> dict[str, Any]:
    """What must agree for a cache to be the one that was asked for."""
    return {
        "weights": fingerprint(world),
        "data": _fingerprint(portions),
        **settings.identity(),
        "transform": _transform(portions[0].clips),
        "specs": specs.to_dict(),
    }


def _transform(clips: VideoClips) -> str:
    timing, (height, width), source = clips.timing, clips.pixels.shape, clips.source
    given = {"fps": timing.fps, "stride": timing.stride, "seconds": timing.seconds}
    apart = ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None) or "consecutive"
    part = "centre" if source.views == 1 else f"{source.views} views along the long side,"
    return (
        f"clips of {timing.frames} frames ({apart}), {timing.clips} of a video, {part} resized to {height}x{width}, "
        f"decoded by {source.decoder}"
    )


def _fingerprint(portions: Sequence[Portion]) -> str:
    """SHA-256 over the files that the clips are of, their labels and maps, and where in them the clips lie.

    Raises:
        InputError: their maps are missing, damaged or of different kinds.
    """
    digest, first = hashlib.sha256(), None
    for portion in portions:
        split, clips, _ = portion
        source = clips.source
        names = dict.fromkeys(map(clips.index.path.__getitem__, portion.rows.tolist()))
        maps, kind = None, "missing"
        if source.maps is not None:
            maps, kind = maps_digest(clips.index.folder, source.maps, names)
        first = first or (source.path, kind)
        if kind != first[1]:
            told = f"maps of {first[0]} are {first[1]}, of {source.path} {kind}"
            raise InputError(f"{told}: expected one kind, change maps of the sources")
        chosen = [source.views, None if source.actions is None else source.actions.identity(), maps]
        digest.update(json.dumps([split, asdict(clips.timing), clips.short, clips.labels, *chosen]).encode())
    for index, labels, rows in ((item.clips.index, item.clips.labels, item.rows.tolist()) for item in portions):
        times = [name for name in SECONDS if name in index.columns]  # of actions
        numbers = (index.frames, index.duration, *(index.columns[name] for name in dict.fromkeys((*labels, *times))))
        for row in rows:
            known = [index.path[row], index.hash[row], *(float(column[row]) for column in numbers)]
            digest.update(json.dumps(known).encode())
    return digest.hexdigest()
