"""Which frames of a video a clip shows: by presentation time, so that a variable frame rate gives the right ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jepa.errors import InputError

TOLERANCE = 1e-3  # s: containers such as Matroska round times to milliseconds


@dataclass(frozen=True)
class ClipTiming:
    """How the frames of a clip lie in time: at most one of ``fps``, ``stride`` and ``seconds``; else every frame.

    Args:
        frames: T, frames of a clip.
        fps: The clip shows what is on screen every 1/fps seconds, whatever the rate of the file.
        stride: The clip takes every ``stride``-th frame of the file.
        seconds: The clip lasts so long: the same as ``fps = frames / seconds``.
        clips: A video is cut into so many equal segments of possible beginnings, with one clip in each.
    """

    frames: int = 16
    fps: float | None = None
    stride: int | None = None
    seconds: float | None = None
    clips: int = 1

    def __post_init__(self) -> None:
        given = {"fps": self.fps, "stride": self.stride, "seconds": self.seconds}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise InputError(f"clips were given {' and '.join(given)}, expected one of fps, stride, seconds: keep one")
        for name, value in (given | {"frames": self.frames, "clips": self.clips}).items():
            whole = name in ("frames", "clips", "stride")
            if not np.isfinite(value) or value <= 0 or (whole and value < 1):
                raise InputError(f"{name} of a clip is {value}, expected {'1 or more' if whole else 'more than 0'}")

    @property
    def step(self) -> float | None:
        """Seconds from one frame to the next; None where frames are counted."""
        if self.fps is not None:
            return 1 / self.fps
        return None if self.seconds is None else self.seconds / self.frames

    @property
    def hop(self) -> int:
        """Frames of the file from one frame to the next, where they are counted."""
        return self.stride or 1

    def fits(self, frames: np.ndarray, duration: np.ndarray) -> np.ndarray:
        """Whether videos of so many frames and seconds hold a clip."""
        if self.step is None:
            return np.asarray(frames) > (self.frames - 1) * self.hop
        return np.asarray(duration) - TOLERANCE > (self.frames - 1) * self.step

    def frames_at(self, times: np.ndarray, end: float, segment: int, place: float) -> np.ndarray:
        """Frame numbers, int64 [T], of the clip of a segment. Behind the end, the last frame is repeated.

        ``times`` float64 [F] are the seconds at which the frames appear and ``end`` is when the last one leaves.
        ``place`` in [0, 1) chooses among the beginnings that the segment has: a uniform one gives each of them the same
        chance, 0.5 the one in the middle.
        """
        place = (segment + place) / self.clips
        last, steps = len(times) - 1, np.arange(self.frames)
        if self.step is None:
            room = max(0, last - (self.frames - 1) * self.hop)
            return np.minimum(min(int(place * (room + 1)), room) + steps * self.hop, last)
        room = max(0.0, end - (self.frames - 1) * self.step)
        latest = max(0.0, room - 2 * _slack(times))  # or the last frame would come a moment late
        return shown(times, min(place * room, latest) + steps * self.step)


def ending(times: np.ndarray) -> float:
    """When the last frame leaves the screen, in seconds: it stays as long as frames usually do."""
    return float(times[-1] + _gap(times))


def shown(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The frames, int64, that are on screen at these moments (seconds); before the first and behind the last, those."""
    return np.clip(np.searchsorted(times, moments + _slack(times), side="right") - 1, 0, len(times) - 1)


def _slack(times: np.ndarray) -> float:
    """Seconds by which a moment may miss the time of a frame that was meant."""
    return min(TOLERANCE, _gap(times) / 4)


def _gap(times: np.ndarray) -> float:
    """Seconds for which a frame usually stays."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0
