"""Which part of a video is seen before an action is to be anticipated: clips that end a while before it begins."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from jepa.data.annotations import Annotations, numbered
from jepa.data.clip_sampling import shown
from jepa.data.index import COLUMNS, VideoIndex
from jepa.data.random import fold, unit
from jepa.errors import InputError, check_choice

log = logging.getLogger(__name__)

Protocol = Literal["start", "published_stop"]
DRAWS = 0x616374  # tells the draws of this file from those of crops, which are made from the same keys
TIME, POINT = range(2)  # purposes for which a key is folded
SECONDS = ("start", "stop")  # columns of an index of actions, beside their classes
NAMED = 5  # videos of a long list that a log line names


class Ending(NamedTuple):
    """Where in its file a clip ends. The frames before that, ``step`` apart, are all that it shows."""

    end: float  # seconds, or the number of a frame where frames are counted
    step: float  # from one frame of the clip to the next
    counted: bool
    ahead: float  # from there to what is to be anticipated, in steps

    def frames_at(self, times: np.ndarray, count: int) -> np.ndarray:
        """Frame numbers, int64 [count], of a file whose frames appear at ``times``; before the first, that one."""
        moments = self.end - self.step * np.arange(count, 0, -1)
        if self.counted:
            return np.clip(moments, 0, len(times) - 1).astype(np.int64)
        return shown(times, moments)


@dataclass
class Anticipation:
    """Actions that are to be anticipated from what was seen before them.

    Protocol "start", the standard one (Damen et al. 2022, EPIC-KITCHENS-100): the clip ends ``seconds`` before the
    action begins, by presentation time. A frame that lies behind that is never read. Clips that would begin before
    their video repeat its first frame; actions before which nothing can be seen are left out.

    Protocol "published_stop", that of V-JEPA 2 (Assran et al. 2025) as released: the clip ends at
    point * start + (1 - point) * stop - seconds, which for point 0 lies ``seconds`` before the action's *end* and may
    show most of it. Frames are counted as released, int(rate / fps) apart.

    Several draws of an action (``clips`` of the source) take their seconds and point from keys of their own.

    Args:
        table: Annotated actions: see :class:`jepa.data.annotations.Annotations`.
        train: The table of the training actions, whose classes are numbered from 0; ``table`` itself if null. Classes
            that it lacks get the numbers that follow.
        protocol: "start", or "published_stop".
        seconds: Shortest and longest anticipation, drawn evenly; published are [1, 1], and [0.25, 1.75] in training.
        point: Smallest and largest point, for "published_stop" alone; published are [0, 0], and [0, 0.25] in training.
        answers: Classes that are asked for; all of the table if null.
    """

    table: str
    train: str | None = None
    protocol: Protocol = "start"
    seconds: tuple[float, float] = (1.0, 1.0)
    point: tuple[float, float] | None = None
    answers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("protocol", self.protocol, get_args(Protocol))
        low, high = self.seconds
        if not 0 <= low <= high < float("inf"):
            raise InputError(f"seconds of an anticipation are {[low, high]}, expected 0 <= shortest <= longest")
        if self.protocol == "start" and self.point is not None:
            raise InputError("point is for the protocol published_stop; leave it out, clips end before the start")
        low, high = self.points
        if not 0 <= low <= high <= 1:
            raise InputError(f"point is {[low, high]}, expected 0 <= smallest <= largest <= 1")

    @property
    def points(self) -> tuple[float, float]:
        """Where between an action's stop (0) and its start (1) time is counted back from."""
        if self.protocol == "start":
            return 1.0, 1.0
        return (0.0, 0.0) if self.point is None else self.point

    def identity(self) -> list[object]:
        """What, beside the actions themselves, decides which frames are seen."""
        return [self.protocol, *self.seconds, *self.points]

    @property
    def varies(self) -> bool:
        """Whether draws of one action differ."""
        return self.seconds[0] < self.seconds[1] or self.points[0] < self.points[1]

    def index(self, videos: VideoIndex) -> VideoIndex:
        """A row for every action that can be anticipated, those of a video in their order: the row of the video, the
        seconds at which it starts and stops, and the numbers of its classes.

        Raises:
            InputError: a table cannot be read, or no action can be used.
        """
        table = Annotations.read(self.table, self.answers)
        train = table if self.train in (None, self.table) else Annotations.read(self.train, self.answers)
        classes, known = numbered(train, table)
        row = _rows(table, videos)
        at = np.maximum(row, 0)
        start, stop = self._seconds(table, videos.fps[at]).T
        kept = self._usable(table, row, start, stop, videos.duration[at])
        kept = kept[np.lexsort((start[kept], row[kept]))]
        held = {name: [videos.columns[name][number] for number in row[kept].tolist()] for name in COLUMNS}
        told = dict(zip(SECONDS, (start[kept], stop[kept]))) | {name: value[kept] for name, value in classes.items()}
        unknown = np.any([told[name] >= known[name] for name in classes], axis=0)
        if new := int(unknown.sum()):
            log.info("%d of %d actions of %s are of classes that %s lacks", new, len(kept), self.table, self.train)
        return VideoIndex(held, videos.folder).with_labels(told)

    def ending(self, index: VideoIndex, row: int, key: int, step: float) -> Ending:
        """Where the clip of an action ends whose frames lie ``step`` seconds apart: a function of row and key."""
        start, stop = (float(index.columns[name][row]) for name in SECONDS)
        seconds, point = _drawn(self.seconds, key, TIME), _drawn(self.points, key, POINT)
        ahead = round(seconds / step, 6)  # a whole number of frames must not fall short by rounding
        if self.protocol == "start":
            return Ending(start - seconds, step, False, ahead)
        rate = float(index.fps[row])
        first, last = round(start * rate), round(stop * rate)
        end = int(first * point + (1 - point) * last - int(seconds * rate))
        return Ending(end, max(1, int(rate * step + 1e-9)), True, ahead)

    def _seconds(self, table: Annotations, rate: np.ndarray) -> np.ndarray:
        """Start and stop, float64 [n,2]; where the protocol counts frames, by those of the table if it has any."""
        by_frame = table.seconds is None or (self.protocol != "start" and table.frames is not None)
        with np.errstate(divide="ignore", invalid="ignore"):
            return table.frames / rate[:, None] if by_frame else table.seconds

    def _usable(
        self, table: Annotations, row: np.ndarray, start: np.ndarray, stop: np.ndarray, duration: np.ndarray
    ) -> np.ndarray:
        """Numbers of the actions that can be used; the others are counted and named in the log, by what is wrong."""
        present = row >= 0
        faults = {
            "whose video is missing or cannot be read": ~present,
            "that end before they begin": ~(stop > start),
            "that begin behind the end of their video": start >= duration,
        }
        if self.protocol == "start":
            faults["before which nothing can be seen"] = start - self.seconds[1] <= 0
        good = np.ones(len(table), dtype=bool)
        for fault, where in faults.items():
            if lost := np.flatnonzero(where & good).tolist():
                named = list(dict.fromkeys(table.video[number] for number in lost))
                more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
                told = ", ".join(named[:NAMED]) + more
                log.warning("%d of %d actions of %s are left out %s: %s", len(lost), len(good), self.table, fault, told)
            good &= ~where
        if not good.any():
            raise InputError(
                f"none of {len(table)} actions of {self.table} can be anticipated: the first is of {table.video[0]!r}, "
                f"{next(fault for fault, where in faults.items() if where[0])}; correct the table, or the path of the "
                "videos"
            )
        return np.flatnonzero(good)


def _rows(table: Annotations, videos: VideoIndex) -> np.ndarray:
    """The row of the index that each action's video has, int64; -1 where there is none that can be read."""
    paths = {number: videos.path[number] for number in videos.readable.tolist() if videos.kind[number] == "video"}
    if table.by == "path":
        place = {os.path.abspath(videos.folder / path): number for number, path in paths.items()}
        return np.array([place.get(os.path.abspath(videos.folder / name), -1) for name in table.video], dtype=np.int64)
    place, asked = {}, set(table.video)
    for number, path in paths.items():
        name = Path(path).stem
        if name in asked and name in place:
            two = f"{paths[place[name]]} and {path}"
            raise InputError(f"{two} are both named {name!r}; remove one, or annotate by path")
        place[name] = number
    return np.array([place.get(name, -1) for name in table.video], dtype=np.int64)


def _drawn(limits: tuple[float, float], key: int, purpose: int) -> float:
    low, high = limits
    return low + (high - low) * float(unit(fold(fold(key, DRAWS), purpose)))
