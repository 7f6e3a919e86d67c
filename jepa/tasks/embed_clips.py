"""Clips of videos as rows of a feature cache: what ``jepa embed`` does with :class:`VideoData`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Subset

from jepa.data.video_clips import VideoClips
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.schema import Sample, Specs
from jepa.tasks import latents
from jepa.tasks.features import Columns, complete, exists, fingerprint, write_meta
from jepa.tasks.latents import Embeds, Settings

log = logging.getLogger(__name__)


class Portion(NamedTuple):
    """The first ``count`` clips of a dataset: they go to a split."""

    split: str
    clips: VideoClips
    count: int

    @property
    def rows(self) -> np.ndarray:
        """Of the index, one for each video."""
        return self.clips.rows[: self.count : self.clips.source.clips]


@dataclass
class Videos:
    """The videos of a cache, numbered as their first clip comes in; those without one are not among them."""

    splits: dict[str, list[int]]
    files: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # clips of each video
    _last: tuple[Portion, int] | None = None

    def add(self, portion: Portion, rows: Sequence[int]) -> None:
        """Clips in their order, by the row of the index that each is of."""
        for row in rows:
            if (portion, row) != self._last:
                self._last = (portion, row)
                self.splits[portion.split].append(len(self.files))
                self.files.append(portion.clips.index.path[row])
                self.rows.append(0)
            self.rows[-1] += 1


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
    world = latents.prepared(world, settings)
    portions = _portions(data, splits, limit)
    _check_disjoint(portions)
    specs = _shared_specs(portions)
    seen = specs.observation
    latents.check_frames(world, seen.channels, seen.height, seen.width, "set data.size as the encoder's")
    identity = _identity(world, portions, specs, settings)
    if exists(out, identity):
        log.info("%s is already the cache of these weights and data", out)
        return out
    with complete(out) as folder:
        about = _write(world, data, portions, folder, settings, out)
        source = ", ".join(dict.fromkeys(portion.clips.source.path for portion in portions))
        write_meta(folder, identity, {"checkpoint": checkpoint, "source": source, **about})
    return out


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
    timing, (height, width) = clips.timing, clips.pixels.shape
    given = {"fps": timing.fps, "stride": timing.stride, "seconds": timing.seconds}
    apart = ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None) or "consecutive"
    return f"clips of {timing.frames} frames ({apart}), {timing.clips} of a video, centre resized to {height}x{width}"


def _fingerprint(portions: Sequence[Portion]) -> str:
    """SHA-256 over the files that the clips are of, their labels, and where in them the clips lie."""
    digest = hashlib.sha256()
    for split, clips, _ in portions:
        digest.update(json.dumps([split, asdict(clips.timing), clips.short, clips.labels]).encode())
    for index, labels, rows in ((item.clips.index, item.clips.labels, item.rows.tolist()) for item in portions):
        numbers = (index.frames, index.duration, *(index.columns[name] for name in labels))
        for row in rows:
            known = [index.path[row], index.hash[row], *(float(column[row]) for column in numbers)]
            digest.update(json.dumps(known).encode())
    return digest.hexdigest()


@torch.inference_mode()
def _write(
    world: Embeds, data: VideoData, portions: Sequence[Portion], folder: Path, settings: Settings, out: Path
) -> dict[str, Any]:
    """Write all arrays and return what the cache holds."""
    total = sum(portion.count for portion in portions)
    videos, about = Videos(splits={portion.split: [] for portion in portions}), {}
    bar = Progress(TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("clips"), TimeRemainingColumn())
    with bar, Columns(folder, total, out) as columns:
        job = bar.add_task("embed", total=total)
        for portion, sample in _batches(data, portions):
            clips, rows = portion.clips, sample.index[:, 0].tolist()
            z = latents.encode(world, sample, settings)
            z = latents.kept(z, settings, lambda number: str(clips.index.where(rows[number])))  # noqa: B023
            columns.append({"features": latents.rows(z), **_columns(sample)})
            videos.add(portion, rows)
            about = latents.shape(z, world)
            bar.advance(job, len(rows))
    np.save(folder / "offsets.npy", np.cumsum([0, *videos.rows]).astype(np.int64))
    return {**about, "splits": videos.splits, "files": videos.files, "left_out": sorted(data.failed)}


def _batches(data: VideoData, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Sample]]:
    """All clips in order, dataset after dataset."""
    for portion in portions:
        for samples in data.loader(Subset(portion.clips, range(portion.count))):
            yield from ((portion, sample) for sample in samples)


def _columns(sample: Sample) -> dict[str, np.ndarray]:
    """What stands beside the latents of clips: where they begin, and the labels of their videos."""
    columns = {"start": sample.index[:, 1].numpy()}
    return columns if sample.state is None else columns | {"state": sample.state[:, 0].numpy()}
