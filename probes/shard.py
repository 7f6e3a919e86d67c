"""A small labelled part of a dataset, read in pixels: what a probe is fitted on while the encoder still learns."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.data.clips import split
from jepa.data.module import EpisodeData
from jepa.data.transforms import resize
from jepa.data.video_clips import Failure
from jepa.data.video_module import VideoData
from jepa.errors import InputError, check_known
from jepa.schema import ObservationSpec, Sample
from probes.cache import class_numbers

log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
PARTS = ("train", "val", "test")
MEMORY = 2**28  # bytes of pixels that are kept; a larger shard is read again each time


@dataclass
class Shard:
    """Labelled examples: single frames of episodes, or clips of videos.

    ``y``: float32 [n,K] in raw units, or int64 [n] class numbers. ``read`` gives examples by their numbers, without
    batch axis: the sample (video uint8 [T,C,H,W]; proprio), or the failure where a file cannot be read.
    """

    y: Tensor
    episode: NDArray[np.int64]  # [n]
    frame: ObservationSpec
    read: Callable[[list[int]], list[Sample | Failure]]
    _held: list[tuple[list[int], Sample]] = field(default_factory=list)
    _failed: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, size: int) -> Iterator[tuple[list[int], Sample]]:
        """Numbers of the examples and their pixels, batches of up to ``size`` of one length; unreadable ones are left
        out and named."""
        if self._held:
            yield from self._held
            return
        kept, room = [], MEMORY
        for start in range(0, len(self), size):
            numbers = [n for n in range(start, min(start + size, len(self))) if n not in self._failed]
            for batch in self._alike(numbers, self.read(numbers) if numbers else []):
                room -= batch[1].video.nbytes
                kept = [*kept, batch] if room >= 0 else []
                yield batch
        if room >= 0:
            self._held = kept

    def _alike(self, numbers: list[int], items: list[Sample | Failure]) -> list[tuple[list[int], Sample]]:
        groups: dict[int, tuple[list[int], list[Sample]]] = {}
        for number, item in zip(numbers, items):
            if isinstance(item, Failure):
                self._failed.add(number)
                log.warning("%s is left out of the probe: %s", item.file, item.reason)
                continue
            members = groups.setdefault(len(item.video), ([], []))
            members[0].append(number)
            members[1].append(Sample(video=item.video, proprio=item.proprio))
        return [(found, Sample.stack(samples)) for found, samples in groups.values()]


def labelled(data: EpisodeData | VideoData, part: Part, target: str, classes: int = 0, limit: int = 1000) -> Shard:
    """At most ``limit`` examples, spread evenly over a part of a dataset, with what a probe is to read out of them.

    Args:
        data: episodes, of which single frames are taken; or videos, of which the evenly placed clips are.
        part: of the split of the data.
        target: comma-separated names: of dimensions of the state (the labels of videos), or state or proprio.
        classes: number of classes where the target is a class number, else 0.
        limit: of the examples.
    """
    if isinstance(data, VideoData):
        return _of_videos(data, part, target, classes, limit)
    if isinstance(data, EpisodeData):
        return _of_episodes(data, part, target, classes, limit)
    raise InputError(
        f"the data is a {type(data).__name__}, expected jepa.data.module.EpisodeData or "
        "jepa.data.video_module.VideoData: give the probe its data"
    )


def _evenly(total: int, limit: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(np.int64))


def _of_episodes(data: EpisodeData, part: Part, target: str, classes: int, limit: int) -> Shard:
    episodes = data.episodes
    numbers = dict(zip(PARTS, split(episodes, data.splits, data.seed)))[part]
    if not len(numbers):
        raise InputError(f"the {part} split of {data.path} is empty: give the probe another part, or change splits")
    ends = np.cumsum([episodes.length(number) for number in numbers])
    places = _evenly(int(ends[-1]), limit)
    owner = np.searchsorted(ends, places, side="right")
    episode, frame = np.asarray(numbers)[owner], places - np.concatenate([[0], ends])[owner]

    def rows(chosen: list[int], columns: tuple[str, ...]) -> Sample:
        wanted = np.asarray(chosen)
        parts = [
            episodes.read(int(number), frame[wanted[episode[wanted] == number]], columns)
            for number in dict.fromkeys(episode[wanted].tolist())
        ]
        return Sample(**{name: torch.cat([getattr(one, name) for one in parts]) for name in columns})

    seen = episodes.specs.observation
    pixels = ("video", "proprio") if seen.proprio_mean else ("video",)

    def read(chosen: list[int]) -> list[Sample | Failure]:
        found = rows(chosen, pixels)
        video = resize(found.video, data.size) if data.size else found.video
        proprio = [None] * len(video) if found.proprio is None else found.proprio[:, None]
        return [Sample(video=one[None], proprio=other) for one, other in zip(video, proprio)]

    names, columns = _columns(target, seen)
    held = rows(list(range(len(places))), columns)
    y = torch.cat([_values(held, name, seen) for name in names], dim=1)
    return Shard(_checked(y, target, classes), episode, data.specs.observation, read)


def _of_videos(data: VideoData, part: Part, target: str, classes: int, limit: int) -> Shard:
    parts = data.parts(part)
    ends = np.cumsum([len(clips) for clips in parts]).tolist()
    places = _evenly(ends[-1], limit).tolist()
    homes = [(bisect_right(ends, place), place) for place in places]
    homes = [(number, place - (ends[number - 1] if number else 0)) for number, place in homes]
    seen = parts[0].specs.observation
    names, _ = _columns(target, seen)
    wanted = [label for name in names for label in (seen.state_names if name == "state" else (name,))]

    def labels(number: int, item: int) -> list[float]:
        clips = parts[number]
        return [float(clips.index.columns[name][clips.rows[item]]) for name in wanted]

    y = torch.tensor([labels(*home) for home in homes])
    videos = [(number, int(parts[number].rows[item])) for number, item in homes]
    numbered = {video: count for count, video in enumerate(dict.fromkeys(videos))}
    episode = np.array([numbered[video] for video in videos])

    def read(chosen: list[int]) -> list[Sample | Failure]:
        return [parts[number][item] for number, item in (homes[one] for one in chosen)]

    return Shard(_checked(y, target, classes), episode, seen, read)


def _columns(target: str, seen: ObservationSpec) -> tuple[list[str], tuple[str, ...]]:
    """The names of a target, and the columns that they are in."""
    names = [name.strip() for name in target.split(",")]
    known = [*seen.state_names, *(("state",) if seen.state_names else ()), *(("proprio",) if seen.proprio_mean else ())]
    check_known("target", names, known)
    return names, tuple(dict.fromkeys("proprio" if name == "proprio" else "state" for name in names))


def _values(held: Sample, name: str, seen: ObservationSpec) -> Tensor:
    if name in ("state", "proprio"):
        return getattr(held, name).float()
    place = seen.state_names.index(name)
    return held.state[:, place : place + 1].float()


def _checked(y: Tensor, target: str, classes: int) -> Tensor:
    if not y.isfinite().all():
        raise InputError(f"target {target} holds NaN or infinity: choose another")
    return class_numbers(y, target, classes) if classes else y
