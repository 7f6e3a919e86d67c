"""Clips of videos as uint8 samples: where in the file, which frames, which part of the picture, in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from jepa.data.anticipation import Anticipation, Ending
from jepa.data.clip_sampling import ClipTiming, ending
from jepa.data.crops import Box, Pixels, around, cut, random_box, side_boxes
from jepa.data.decoders import DECODERS, open_video
from jepa.data.guard import Guard
from jepa.data.index import VideoFile, VideoIndex
from jepa.data.maps import map_file, read_map
from jepa.data.random import bits, fold, unit
from jepa.errors import InputError, check_choice, check_known
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs

log = logging.getLogger(__name__)

PIXELS = 0x706978  # tells the draws of this file from the masks, which are drawn from the same keys
BEGIN, CROP, FLIP = range(3)  # purposes for which a key is folded
EVALUATION = 0x6576616C  # the seed of the keys of evaluation
NAMED = 5  # files of a long list that a log line names


@dataclass
class VideoSource:
    """One dataset of videos (and images, which are videos of one frame, repeated where a clip has more).

    At most one of ``fps``, ``stride`` and ``seconds`` says how far the frames of a clip lie apart; without any they
    follow each other. See :class:`jepa.data.clip_sampling.ClipTiming`.

    Args:
        path: A folder of videos, one file, an index that ``jepa inspect video`` wrote (.parquet), or a published list
            (.csv: path and label).
        frames: Frames of a clip.
        fps: Frames that a clip shows per second, whatever the rate of the file.
        stride: Frames of the file from one frame of a clip to the next.
        seconds: How long a clip lasts; its frames are spread evenly.
        clips: Clips of a video in one pass: one in each of so many equal segments.
        views: Crops that ``jepa embed`` takes of a clip: 1 in the centre, or 3 along the long side, as published.
        weight: How often this dataset is drawn, in proportion to the others.
        decoder: decord, pyav or torchcodec.
        labels: Numeric columns of the index to hand on as ``state``; all by default.
        actions: Annotated actions to anticipate: their clips, which end before them, take the place of the videos', and
            ``clips`` is how many are drawn of each. Their labels are start and stop, in seconds, and their classes.
        maps: A folder with a map of every file, which labels its pixels: see :mod:`jepa.data.maps`. It is relative to
            that of the files, "." where .npy maps lie beside them; .png maps need a folder of their own. Its names are
            theirs, but for the ending.
    """

    path: str
    frames: int = 16
    fps: float | None = None
    stride: int | None = None
    seconds: float | None = None
    clips: int = 1
    weight: float = 1.0
    decoder: Literal["decord", "pyav", "torchcodec"] = "decord"
    labels: tuple[str, ...] | None = None
    actions: Anticipation | None = None
    maps: str | None = None
    views: Literal[1, 3] = 1

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InputError(f"the weight of {self.path} is {self.weight}, expected more than 0: leave the source out")
        check_choice("decoder", self.decoder, DECODERS)
        if self.views not in (1, 3):
            raise InputError(f"views of {self.path} is {self.views}, expected 1 or 3: choose one")
        if self.timing.step is None and self.actions is not None:
            raise InputError(f"clips before the actions of {self.path} need fps or seconds, to know how long they last")
        if self.actions is not None and self.clips > 1 and not self.actions.varies:
            raise InputError(
                f"clips={self.clips} draws of one action would all be the same: set its seconds to a range, or clips=1"
            )

    @property
    def timing(self) -> ClipTiming:
        return ClipTiming(self.frames, self.fps, self.stride, self.seconds, self.clips)

    def open(self, workers: int = 0, time_limit: float | None = 60.0) -> VideoIndex:
        """The files, or the actions in them, row by row: see :meth:`jepa.data.index.VideoIndex.open`."""
        index = VideoIndex.open(self.path, self.decoder, workers, time_limit)
        return index if self.actions is None else self.actions.index(index)


class Failure(NamedTuple):
    """A file that could not be read. ``fatal`` where nothing of its dataset can."""

    file: str
    reason: str
    fatal: bool = False


def labels_of(source: VideoSource, index: VideoIndex) -> tuple[str, ...]:
    """Names of the labels that a source hands on."""
    check_known("label", source.labels or (), index.labels)
    return tuple(index.labels if source.labels is None else source.labels)


@dataclass(frozen=True)
class Request:
    """All that reading a clip needs to know. ``key`` is None for the evenly placed clips of evaluation."""

    file: str
    decoder: str
    frames: int  # of the file, and the seconds that it lasts, by the index
    duration: float
    timing: ClipTiming
    segment: int
    pixels: Pixels
    key: int | None = None
    repeat: bool = False  # the last frame, where the video is too short
    ending: Ending | None = None  # where the clip ends, of an action that is to be anticipated
    map: str | None = None  # a file that labels its pixels
    views: int = 1  # crops of a clip of evaluation

    def chance(self, purpose: int) -> float:
        return float(unit(fold(fold(self.key, PIXELS), purpose)))

    def boxes(self, height: int, width: int) -> list[Box]:
        """The part of the frames that every view shows."""
        if self.key is None:
            return side_boxes(height, width, self.pixels.shape[1] / self.pixels.shape[0], self.views)
        key = int(fold(fold(self.key, PIXELS), CROP))
        return [random_box(height, width, key, self.pixels.scale, self.pixels.aspect)]

    def region(self, height: int, width: int) -> Box:
        """The part of the frames that any view shows: no other is converted to RGB."""
        return around(self.boxes(height, width))


def read(request: Request) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Open a file, decode the frames of a clip and no others, cut and resize: uint8 [T,h,w,C] and the first frame; and
    where the file has a map, that of the clip, [T,h,w]. Several views lie behind each other: T is views times as long.

    Raises:
        InputError: the file cannot be read, or became too short for a clip.
    """
    drawn = request.key is not None
    with open_video(request.file, request.decoder) as reader:
        frames = _frames(request, reader.times)
        apart, places = np.unique(frames, return_inverse=True)  # an image is read and cut once
        decoded = reader.decode(apart, request.region)
        count, height, width = len(reader.times), reader.height, reader.width
    boxes, flip = request.boxes(height, width), drawn and request.pixels.flip and request.chance(FLIP) < 0.5
    region = around(boxes)
    views = [cut(decoded, box.within(region), request.pixels.shape, flip) for box in boxes]
    views = views if len(apart) == len(frames) else [view[places] for view in views]
    labels = None
    if request.map is not None:
        size = request.pixels.shape
        labels = [read_map(request.map, frames, count, (height, width), box, size) for box in boxes]
        labels = np.concatenate(labels)
        labels = np.ascontiguousarray(labels[..., ::-1]) if flip else labels
    return views[0] if len(views) == 1 else np.concatenate(views), int(frames[0]), labels


def _frames(request: Request, times: np.ndarray) -> np.ndarray:
    """Numbers of the frames that a clip shows, int64 [T], of a file whose frames appear at ``times``."""
    if request.ending is not None:
        return request.ending.frames_at(times, request.timing.frames)
    end = request.duration if len(times) == request.frames else ending(times)
    if not request.repeat and not request.timing.fits(len(times), end):
        raise InputError(f"{request.file} is shorter than its clip: index it again, or set short to repeat")
    place = 0.5 if request.key is None else request.chance(BEGIN)
    return request.timing.frames_at(times, end, request.segment, place)


class VideoClips(Dataset):
    """Clips of the videos of one source: ``clips`` of every video, one in each equal segment of it.

    Item n is evenly placed and centred, for evaluation; :meth:`draw` gives a random one of the same segment, for
    training. Either is a :class:`jepa.schema.Sample` without batch axis: video uint8 [T,C,h,w], a permuted view; state
    float32 [T,X], the labels, where the index has any; index int64 [2], row of the index and first frame; key int64 [].
    Files are opened, and decoded under the time limit, where the item is asked for.

    Args:
        source: The dataset.
        index: Its files; opened if None.
        rows: Rows of the index to use; all readable ones by default.
        labels: Columns of the index that become the state; those of the source by default.
        pixels: Size and random crops.
        short: What becomes of videos that are shorter than a clip: "skip" leaves them out, named in the log; "repeat"
            repeats their last frame. Images are always repeated.
        time_limit: Seconds after which the reading of a clip is given up; None waits for ever.

    Raises:
        InputError: no video is long enough, or a label is unknown.
    """

    def __init__(
        self,
        source: VideoSource,
        index: VideoIndex | None = None,
        rows: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
        pixels: Pixels = Pixels(),
        short: Literal["skip", "repeat"] = "skip",
        time_limit: float | None = 60.0,
    ) -> None:
        check_choice("short", short, ("skip", "repeat"))
        self.index = source.open() if index is None else index
        self.source, self.pixels, self.short, self.timing = source, pixels, short, source.timing
        self.labels = labels_of(source, self.index) if labels is None else tuple(labels)
        rows = self.index.readable if rows is None else np.asarray(rows, dtype=np.int64)
        kept = rows if short == "repeat" or source.actions is not None else self._long_enough(rows)
        self.videos = len(kept)
        self.rows, self.segments = kept.repeat(source.clips), np.tile(np.arange(source.clips), self.videos)
        self.guard = Guard(time_limit)

    @property
    def specs(self) -> Specs:
        """A video has no actions; the labels are the names of the state."""
        return Specs(ActionSpec((), (), (), ()), ObservationSpec(*self.pixels.shape, state_names=self.labels))

    def __len__(self) -> int:
        return len(self.rows)

    def file(self, item: int) -> VideoFile:
        return self.index.file(int(self.rows[item]))

    def where(self, item: int) -> Path:
        return self.index.where(int(self.rows[item]))

    def __getitem__(self, item: int) -> Sample | Failure:
        """The evenly placed clip; a failure where its file cannot be read, which :func:`collate` sets apart."""
        return self._evaluated(item, 1)

    def views(self, item: int) -> Sample | Failure:
        """The same clip, decoded once, in all views of the source: video [views*T,C,h,w], view after view."""
        return self._evaluated(item, self.source.views)

    def _evaluated(self, item: int, views: int) -> Sample | Failure:
        key = fold(bits(EVALUATION, self.rows[item]), self.segments[item])
        try:
            return self._read(item, int(key.astype(np.int64)), views=views)
        except InputError as error:
            return Failure(str(self.where(item)), str(error))

    def draw(self, item: int, key: int) -> Sample:
        """A random clip, a function of item and key alone."""
        return self._read(item, key, key)

    def _read(self, item: int, key: int, drawn: int | None = None, views: int = 1) -> Sample:
        row = int(self.rows[item])
        file = self.index.file(row)
        repeat = self.short == "repeat" or file.kind == "image"
        stored = (str(self.where(item)), file.decoder, file.frames, file.duration)
        actions, maps = self.source.actions, self.source.maps
        ends = None if actions is None else actions.ending(self.index, row, key, self.timing.step)
        labels = None if maps is None else str(map_file(self.index.folder, maps, file.path))
        segment = int(self.segments[item])
        request = Request(*stored, self.timing, segment, self.pixels, drawn, repeat, ends, labels, views)
        frames, first, labels = self.guard(read, request)
        return Sample(
            video=torch.from_numpy(frames).permute(0, 3, 1, 2),
            state=self._state(row) if self.labels else None,
            index=torch.tensor([row, first]),
            key=torch.tensor(key),
            ahead=None if ends is None else torch.tensor(ends.ahead),
            maps=None if labels is None else torch.from_numpy(labels),
        )

    def _state(self, row: int) -> torch.Tensor:
        values = [self.index.columns[name][row] for name in self.labels]
        return torch.tensor(values, dtype=torch.float32).expand(self.timing.frames, -1)

    def _long_enough(self, rows: np.ndarray) -> np.ndarray:
        index = self.index
        fits = self.timing.fits(index.frames[rows], index.duration[rows]) | (index.kind[rows] == "image")
        if left_out := rows[~fits].tolist():
            names = ", ".join(str(index.where(row)) for row in left_out[:NAMED])
            names += f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
            log.warning("%d of %d videos are shorter than a clip and left out: %s", len(left_out), len(rows), names)
        if not fits.any():
            raise InputError(
                f"none of {len(rows)} videos of {self.source.path} is as long as a clip of {self.timing.frames} "
                "frames; ask for less, or set short to repeat"
            )
        return rows[fits]
