"""Videos decoded by PyAV, which carries a current FFmpeg: what decord cannot decode, AV1 for one, goes here.

The packets are listed first, without decoding: their times, sorted, number the frames. To reach a frame, the decoder is
placed at the last key frame at or before it and reads on until a frame of exactly that time comes out; no position is
computed from a rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jepa.data.decoders import Unreadable, check_frames, missing, unreadable

CUT = 0.05  # part of the declared duration, beyond one second, that may lack at the end of a whole file
DECLARING = ("matroska,webm", "avi", "flv")  # formats that write their duration at the beginning, and an index nowhere
GUESS = 25  # frames per second of a file that tells neither times nor a rate
NEAR = 2  # frames up to a key frame that are decoded rather than jumped over: a jump costs about so many
# where a frame that is marked so is certain not to be referred to; in HEVC, higher temporal layers may do so
SPARING = ("h264",)


@cache
def library() -> ModuleType:
    """PyAV, imported at the first use."""
    try:
        import av
    except (ImportError, OSError) as error:
        raise missing("pyav", "av", error) from error
    return av


class Table(NamedTuple):
    """The frames of a file in the order of presentation, as its packets tell them."""

    pts: np.ndarray  # int64 [F] presentation times in units of the stream; just counted where the packets have none
    keys: np.ndarray  # int64 [G] numbers of the frames where decoding can begin
    timed: bool  # whether the packets have presentation times
    plain: bool  # no frame is hidden by an edit list, and none leads its key frame (an open group of pictures)


class FileReader:
    """A :class:`jepa.data.decoders.Reader` of PyAV, with one decoding thread."""

    def __init__(self, path: Path) -> None:
        self.path, av = path, library()
        self._faults = (av.error.FFmpegError, ValueError, OSError, IndexError)
        self._container: Any = None
        self._flow: Iterator[tuple[int, Any]] | None = None  # decoded frames with their numbers, from the last jump on
        self._shape: tuple[int, int] | None = None
        self._due: frozenset[int] = frozenset()  # times of the frames that are wanted, in units of the stream
        try:
            self._open()
            self.table = _listed(self._container.demux(self._stream))
            if not len(self.table.pts):
                raise Unreadable(path, "holds no frame", "its video stream is empty")
            self.codec = self._stream.codec_context.codec.canonical_name  # libdav1d decodes av1
            self.times = self._seconds()
        except Unreadable:
            self.close()
            raise
        except self._faults as error:
            self.close()
            raise unreadable(path, "cannot be opened as a video", error) from error

    @property
    def height(self) -> int:
        return self._seen()[0]

    @property
    def width(self) -> int:
        return self._seen()[1]

    def decode(self, frames: np.ndarray) -> np.ndarray:
        frames = check_frames(frames, len(self.times), self.path)
        wanted, place = np.unique(frames, return_inverse=True)
        self._due = frozenset(self.table.pts[wanted].tolist())
        decoded: np.ndarray | None = None
        try:
            for at, frame in enumerate(self._frames(wanted)):
                pixels = self._pixels(frame)
                if decoded is None:  # one piece of memory for all, which is written once
                    decoded = np.empty((len(wanted), *pixels.shape), np.uint8)
                decoded[at] = pixels
        except Unreadable:
            raise
        except self._faults as error:
            raise unreadable(self.path, "cannot be decoded", error) from error
        if decoded is None:
            return np.empty((0, self.height, self.width, 3), np.uint8)
        return decoded if np.array_equal(wanted, frames) else decoded[place]

    def close(self) -> None:
        self._flow = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        """At the beginning of the file, with nothing decoded."""
        self.close()
        self._container = library().open(str(self.path))
        # the picture of a cover is a stream of video, too
        cover = library().stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            raise Unreadable(self.path, "has no video stream", _streams(self._container))
        self._stream = streams[0]
        self._stream.codec_context.thread_count = 1

    def _seconds(self) -> np.ndarray:
        pts = self.table.pts
        if self.table.timed:
            return (pts - pts[0]) * float(self._stream.time_base)
        return pts / float(self._stream.average_rate or self._stream.guessed_rate or GUESS)

    def _frames(self, wanted: np.ndarray) -> Iterator[Any]:
        """The frames of ascending numbers."""
        self._flow, now = None, 0  # wherever the last call left the file, the first frame is sought
        for number in wanted.tolist():
            key = self._key(number)
            if self._flow is None or key > now + NEAR:
                frame = self._sought(number, key)
            else:
                frame = self._next(number)
            if frame is None:
                raise Unreadable(self.path, "cannot be decoded", f"frame {number} is missing")
            yield frame
            now = number

    def _key(self, number: int) -> int:
        """The last key frame at or before a frame; frame 0 where there is none."""
        at = np.searchsorted(self.table.keys, number, side="right") - 1
        return int(self.table.keys[at]) if at >= 0 else 0

    def _sought(self, number: int, key: int) -> Any:
        """Jump to a key frame and decode up to a frame. A container whose index is coarse may land behind it: then the
        key frame before is tried, and in the end the beginning of the file."""
        while self.table.timed:
            self._container.seek(int(self.table.pts[key]), stream=self._stream, backward=True)
            self._begin()
            if (frame := self._next(number)) is not None:
                return frame
            if key == 0:
                break
            key = self._key(key - 1)
        self._open()
        self._begin()
        return self._next(number)

    def _begin(self) -> None:
        frames = self._decoded() if self.codec in SPARING else self._container.decode(self._stream)
        self._flow = self._numbered(frames) if self.table.timed else enumerate(frames)

    def _decoded(self) -> Iterator[Any]:
        """Frames from here on. Of those that no other refers to, only the wanted ones are decoded, which changes
        none of the others: about half of what common encoders write."""
        context = self._stream.codec_context
        for packet in self._container.demux(self._stream):
            spare = self.table.timed and packet.pts is not None and packet.pts not in self._due
            context.skip_frame = "NONREF" if spare else "DEFAULT"
            yield from packet.decode()

    def _numbered(self, frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """Decoded frames with their numbers. Of frames that share a time, one follows the other."""
        pts, before = self.table.pts, -1
        for frame in frames:
            number = int(np.searchsorted(pts, frame.pts))
            if number < len(pts) and pts[number] == frame.pts:
                twin = number <= before < len(pts) - 1 and pts[before + 1] == frame.pts
                before = before + 1 if twin else number
                yield before, frame

    def _next(self, number: int) -> Any:
        """Decode on to a frame; None where it was passed or does not come."""
        for passed, frame in self._flow:
            if passed >= number:
                return frame if passed == number else None
        return None

    def _pixels(self, frame: Any) -> np.ndarray:
        """RGB, in the size of the stream and turned as the file asks for."""
        context = self._stream.codec_context
        pixels = frame.to_ndarray(format="rgb24", width=context.width, height=context.height)
        pixels = np.rot90(pixels, round(frame.rotation / 90) % 4)
        self._shape = pixels.shape[:2]
        return pixels

    def _seen(self) -> tuple[int, int]:
        """Height and width of a frame as shown: only a decoded frame says how it is turned."""
        if self._shape is None:
            self.decode(np.zeros(1, np.int64))
        return self._shape


def _listed(packets: Iterator[Any]) -> Table:
    """Read the packets of a stream once. Empty ones flush the decoder, or fill gaps in an AVI file."""
    facts = [(p.pts, p.is_keyframe, p.is_discard) for p in packets if p.size]
    shown = [(pts, key) for pts, key, hidden in facts if not hidden]
    if any(pts is None for pts, _ in shown):
        count = np.arange(len(shown))
        return Table(count, count[:1], timed=False, plain=False)
    pts = np.array([pts for pts, _ in shown], dtype=np.int64)
    key = np.array([key for _, key in shown], dtype=bool)
    # in the order of the file: whether a frame comes before the key frame that it is stored behind
    leads = len(pts) and pts < np.maximum.accumulate(np.where(key, pts, pts[0]))
    order = np.argsort(pts, kind="stable")
    plain = len(shown) == len(facts) and not np.any(leads)
    return Table(pts[order], np.flatnonzero(key[order]), timed=True, plain=plain)


def _streams(container: Any) -> str:
    """What a file has instead of a video."""
    kinds = sorted({stream.type for stream in container.streams})
    return f"only {', '.join(kinds)}" if kinds else "nothing at all"


def is_cut(path: Path) -> bool:
    """Whether the end of a file is missing: its index names bytes behind it, or it ends long before its header says."""
    with library().open(str(path)) as container:
        stream = container.streams.video[0]
        if any(entry.pos + entry.size > container.size for entry in stream.index_entries):
            return True
        if container.duration is None or container.format.name not in DECLARING:
            return False
        start = container.start_time or 0
        last = max(((p.pts or 0) * p.time_base for p in container.demux() if p.size), default=0)
        declared = container.duration / library().time_base
        return float(last) - start / library().time_base < declared * (1 - CUT) - 1
