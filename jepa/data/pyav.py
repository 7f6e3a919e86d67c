"""Videos decoded by PyAV, which carries a current FFmpeg: what decord cannot decode, AV1 for one, goes here.

The packets are listed first, without decoding: their times, sorted, number the frames. To reach a frame, the decoder is
placed at the last key frame at or before it and reads on until a frame of exactly that time comes out; no position is
computed from a rate.

What nobody needs is not done, and changes nothing of what comes out: a file is opened without the first frames being
decoded on trial, frames that no other refers to are passed over unless they are wanted, nothing behind the last wanted
frame is decoded to push it out, and of a wanted frame the wanted part is converted to RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jepa.data.decoders import Region, Unreadable, box_of, check_frames, missing, part, unreadable, whole
from jepa.data.packets import counted, listed

CUT = 0.05  # part of the declared duration, beyond one second, that may lack at the end of a whole file
DECLARING = ("matroska,webm", "avi", "flv")  # formats that write their duration at the beginning, and an index nowhere
GUESS = 25  # frames per second of a file that tells neither times nor a rate
NEAR = 2  # frames up to a key frame that are decoded rather than jumped over: a jump costs about so many
# where a frame that is marked so is certain not to be referred to; in HEVC, higher temporal layers may do so
SPARING = ("h264",)
# formats that give size, codec and the times of every frame, so that FFmpeg has none to guess from frames on trial
COMPLETE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# formats that store no times of presentation: FFmpeg tells when a packet is decoded, and calls that a time
UNTOLD = ("avi", "asf")
UNTRIED = {"skip_frame": "all", "probesize": "32"}
WAITING = 15  # frames that FFmpeg's H.264 decoder can hold back
EDGE = 2  # pixels beside a region that some conversions look at
ANY = Fraction(1)  # unit of time of a filter that does not look at times
BLOCK = 8  # pixels: a region that begins at multiples is converted as the whole frame is, colours and dithering alike


@cache
def package() -> ModuleType:
    """PyAV, imported at the first use."""
    try:
        import av
        import av.video.reformatter
    except (ImportError, OSError) as error:
        raise missing("pyav", "av", error) from error
    return av


class FileReader:
    """A :class:`jepa.data.decoders.Reader` of PyAV, with one decoding thread."""

    def __init__(self, path: Path) -> None:
        self.path, av = path, package()
        self._faults = (av.error.FFmpegError, ValueError, OSError, IndexError)
        self._container: Any = None
        self._flow: Iterator[tuple[int, Any]] | None = None  # decoded frames with their numbers, from the last jump on
        self._shape: tuple[int, int] | None = None
        self._colours = Colours()
        try:
            self._open(UNTRIED)
            if self.codec not in SPARING or self._container.format.name not in COMPLETE:
                self._open()
            self.table = listed(self._container.demux(self._stream))
            if not len(self.table.pts):
                raise Unreadable(path, "holds no frame", "its video stream is empty")
            reorders = self._stream.codec_context.has_b_frames
            if reorders and self.table.depth == 0 and self._container.format.name in UNTOLD:
                self.table = counted(len(self.table.pts))
            self.times = self._seconds()
        except Unreadable:
            self.close()
            raise
        except self._faults as error:
            self.close()
            raise unreadable(path, "cannot be opened as a video", error) from error
        # frames are told by their times: where two share one, every frame is decoded and they are counted
        told = self.table.timed and bool(np.all(np.diff(self.table.pts) > 0))
        self._sparing = self.codec in SPARING and told and self.table.depth <= WAITING

    @property
    def height(self) -> int:
        return self._seen()[0]

    @property
    def width(self) -> int:
        return self._seen()[1]

    def decode(self, frames: np.ndarray, region: Region = whole) -> np.ndarray:
        frames = check_frames(frames, len(self.times), self.path)
        wanted, place = np.unique(frames, return_inverse=True)
        decoded: np.ndarray | None = None
        region = cache(region)  # asked once for all frames
        try:
            for at, frame in enumerate(self._frames(wanted)):
                pixels = self._pixels(frame, region)
                if decoded is None:  # one piece of memory for all, which is written once
                    decoded = np.empty((len(wanted), *pixels.shape), np.uint8)
                decoded[at] = pixels
        except Unreadable:
            raise
        except self._faults as error:
            raise unreadable(self.path, "cannot be decoded", error) from error
        if decoded is None:
            return part(np.empty((0, self.height, self.width, 3), np.uint8), region, self.path)
        return decoded if np.array_equal(wanted, frames) else decoded[place]

    def close(self) -> None:
        self._flow = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self, options: dict[str, str] | None = None) -> None:
        """At the beginning of the file. Without options, FFmpeg decodes some frames on trial and guesses from them."""
        self.close()
        self._container, self._tried = package().open(str(self.path), options=options), not options
        # the picture of a cover is a stream of video, too
        cover = package().stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            raise Unreadable(self.path, "has no video stream", _streams(self._container))
        self._stream, self.alone = streams[0], len(streams) == 1
        if self._stream.codec_context is None:
            raise Unreadable(self.path, "has a codec that PyAV has no decoder for", self._container.format.name)
        self._stream.codec_context.thread_count = 1
        self.codec = self._stream.codec_context.codec.canonical_name  # libdav1d decodes av1

    def _seconds(self) -> np.ndarray:
        pts = self.table.pts
        if self.table.timed:
            return (pts - pts[0]) * float(self._stream.time_base)
        return pts / float(self._stream.average_rate or self._stream.guessed_rate or GUESS)

    def _frames(self, wanted: np.ndarray) -> Iterator[Any]:
        """The frames of ascending numbers. Where sparing does not find one, all are decoded from there on."""
        for run in self.table.runs(wanted, NEAR):
            found = 0
            if self._sparing:
                for frame in self._spared(run):
                    found += 1
                    yield frame
            yield from self._searched(run[found:])

    def _spared(self, run: np.ndarray) -> Iterator[Any]:
        """Frames of ascending numbers behind one key frame, as far as they come, one after the other. An interlaced
        frame may be stored as two fields, one of which nobody refers to: there it ends."""
        due = self.table.pts[run].tolist()
        frames = self._decoded(self.table.key(int(run[0])), due) if due else iter(())
        for time in due:
            frame = next((frame for frame in frames if frame.pts is None or frame.pts >= time), None)
            if frame is None or frame.pts != time or frame.interlaced_frame:
                self._sparing = False  # another run would end there, too
                return
            yield frame

    def _decoded(self, key: int, due: list[int]) -> Iterator[Any]:
        """Frames from a key frame to the last one of the times ``due``. Of those that no other refers to, only the due
        ones are decoded, which changes none of the others: about half of what common encoders write."""
        self._container.seek(int(self.table.pts[key]), stream=self._stream, backward=True)
        context, left = self._stream.codec_context, set(due)
        # how many frames wait for others to be shown first is known, and would be guessed anew behind every jump
        context.reorder_depth = max(context.reorder_depth, self.table.depth)
        for packet in self._container.demux(self._stream):
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in left else "NONREF"
            yield from packet.decode()
            left.discard(packet.pts)
            if not left:
                yield from context.decode(None)  # what waits
                return

    def _searched(self, run: np.ndarray) -> Iterator[Any]:
        """Frames of ascending numbers behind one key frame, every frame before them being decoded."""
        self._flow = None  # wherever the last call left the file, the first frame is sought
        if len(run) and not self._tried:
            self._open()
        self._stream.codec_context.skip_frame = "DEFAULT"
        for number in run.tolist():
            frame = self._sought(number, self.table.key(number)) if self._flow is None else self._next(number)
            if frame is None:
                raise Unreadable(self.path, "cannot be decoded", f"frame {number} is missing")
            yield frame

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
            key = self.table.key(key - 1)
        self._open()
        self._begin()
        return self._next(number)

    def _begin(self) -> None:
        frames = self._container.decode(self._stream)
        self._flow = self._numbered(frames) if self.table.timed else enumerate(frames)

    def _numbered(self, frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """Decoded frames with their numbers. Of frames that share a time, one follows the other."""
        pts, before = self.table.pts, -1
        for frame in frames:
            if frame.pts is None:
                raise Unreadable(self.path, "cannot be decoded", "its frames have no times, though its packets do")
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

    def _pixels(self, frame: Any, region: Region) -> np.ndarray:
        """A region as RGB, in the size of the stream and turned as the file asks for."""
        height, width = self._stream.codec_context.height, self._stream.codec_context.width
        turns = round(frame.rotation / 90) % 4
        self._shape = (width, height) if turns % 2 else (height, width)
        if turns or (frame.height, frame.width) != (height, width):
            pixels = np.rot90(self._colours.of(frame, height, width), turns)
            return part(pixels, region, self.path)
        return self._colours.within(frame, *box_of(region, height, width, self.path))

    def _seen(self) -> tuple[int, int]:
        """Height and width of a frame as shown: only a decoded frame says how it is turned."""
        if self._shape is None:
            self.decode(np.zeros(1, np.int64))
        return self._shape


class Colours:
    """Turns frames into RGB: the part of one that is wanted, as it is in the whole one."""

    def __init__(self) -> None:
        self._reformatter = package().video.reformatter.VideoReformatter()  # its tables serve all frames
        self._graph: Any = None
        self._cuts: tuple[Any, ...] = ()  # what the graph was made for

    def of(self, frame: Any, height: int, width: int) -> np.ndarray:
        """All of a frame, resized to height and width: uint8 [height, width, 3]."""
        (plane,) = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).planes
        return np.ndarray((height, width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))

    def within(self, frame: Any, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The box of a frame: uint8 [height, width, 3]."""
        above, below = _blocks(top, height, frame.height)
        before, behind = _blocks(left, width, frame.width)
        if (below - above, behind - before) != (frame.height, frame.width):
            frame = self._cut(frame, above, before, below - above, behind - before)
        pixels = self.of(frame, frame.height, frame.width)
        return pixels[top - above :, left - before :][:height, :width]

    def _cut(self, frame: Any, top: int, left: int, height: int, width: int) -> Any:
        """The part of a frame, in its own colours: the same memory."""
        wanted = (frame.format.name, frame.height, frame.width, top, left, height, width)
        if wanted != self._cuts:
            self._graph, self._cuts = package().filter.Graph(), wanted
            size = {"width": frame.width, "height": frame.height}
            given = self._graph.add_buffer(format=frame.format, time_base=ANY, **size)
            crop = self._graph.add("crop", f"{width}:{height}:{left}:{top}")
            self._graph.link_nodes(given, crop, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        return self._graph.pull()


def _blocks(begin: int, count: int, size: int) -> tuple[int, int]:
    """The smallest range of whole blocks around a range and its edges, within ``size``."""
    first, last = (begin - EDGE) // BLOCK, -(-(begin + count + EDGE) // BLOCK)
    return max(first, 0) * BLOCK, min(last * BLOCK, size)


def _streams(container: Any) -> str:
    """What a file has instead of a video."""
    kinds = sorted({stream.type for stream in container.streams})
    return f"only {', '.join(kinds)}" if kinds else "nothing at all"


def is_cut(path: Path) -> bool:
    """Whether the end of a file is missing: its index names bytes behind it, or it ends long before its header says."""
    with package().open(str(path)) as container:
        stream = container.streams.video[0]
        if any(entry.pos + entry.size > container.size for entry in stream.index_entries):
            return True
        if container.duration is None or container.format.name not in DECLARING:
            return False
        start = container.start_time or 0
        last = max(((p.pts or 0) * p.time_base for p in container.demux() if p.size), default=0)
        declared = container.duration / package().time_base
        return float(last) - start / package().time_base < declared * (1 - CUT) - 1
