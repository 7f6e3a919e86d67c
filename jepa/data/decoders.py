"""What reads the frames of one file: the interface that all decoders share, and the choice between them.

Frames are numbered in the order of presentation, whatever the order in which the file stores them, and every frame has
its own time: in a file of variable rate, frame n is not at n / fps. A reader is opened for each clip, in the process
and the thread that uses it, and closed after it: readers keep threads and memory, and do not survive a fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jepa.errors import InputError, check_choice

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
ENDINGS = VIDEOS + IMAGES
DECODERS = ("decord", "pyav", "torchcodec")  # each is a file of this package
SOURCE = re.compile(r"^\[[\d:]+\] \S+: ")  # where in its own source decord failed
LONGEST = 160  # characters that are kept of what a library says of a file
# height and width of a frame as shown, which only the reader knows -> top, left, height and width of a part of it
Region = Callable[[int, int], tuple[int, int, int, int]]


def whole(height: int, width: int) -> tuple[int, int, int, int]:
    """The region that is all of a frame."""
    return 0, 0, height, width


class Unreadable(InputError):
    """A file that cannot be read.

    Args:
        path: The file.
        what: What is wrong with it: the same words for all such files.
        detail: What is known beyond that.
    """

    def __init__(self, path: object, what: str, detail: str) -> None:
        super().__init__(f"{path} {what} ({detail}); convert or remove it")
        self.reason = f"{what}: {detail}"

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        what, _, detail = self.reason.partition(": ")
        return Unreadable, (str(self).partition(f" {what} (")[0], what, detail)


@runtime_checkable
class Reader(Protocol):
    """One open file. It belongs to one thread."""

    times: np.ndarray  # float64 [F] presentation time of every frame in seconds, ascending from 0
    height: int  # in pixels, as shown: after the rotation that the file asks for
    width: int
    codec: str  # "" where the library does not tell

    def decode(self, frames: np.ndarray, region: Region = whole) -> np.ndarray:
        """Frames (int64 [T], any order, repeats allowed) as RGB uint8 [T,h,w,3]. Nothing else is decoded than what
        the codec needs for them.

        Args:
            frames: Their numbers.
            region: The part of every frame that is returned: the same pixels that it has in the whole frame, which a
                reader need not convert to RGB.

        Raises:
            Unreadable: the file is damaged there.
            IndexError: there is no such frame.
            AssertionError: the region is not within the frames.
        """

    def close(self) -> None: ...


@contextmanager
def open_video(path: str | Path, decoder: str = "decord") -> Iterator[Reader]:
    """Open one video, or an image as a video of one frame, for as long as the context lasts.

    Args:
        path: The file. Images are told from videos by their ending, and are read by Pillow.
        decoder: decord, pyav or torchcodec.

    Raises:
        InputError: the library is missing; Unreadable, which is one, where it cannot read the file.
    """
    with closing(reader_of(path, decoder)(Path(path))) as reader:
        yield reader


def reader_of(path: str | Path, decoder: str) -> type[Reader]:
    """The class that reads such a file with a decoder."""
    if Path(path).suffix.lower() in IMAGES:
        decoder = "images"
    else:
        check_choice("decoder", decoder, DECODERS)
    return import_module(f"jepa.data.{decoder}").FileReader


def check_decoder(decoder: str) -> None:
    """Raise :class:`InputError` unless the library of a decoder is there and loads."""
    check_choice("decoder", decoder, DECODERS)
    import_module(f"jepa.data.{decoder}").package()


def missing(name: str, package: str, error: BaseException) -> InputError:
    """What to say where the library of a decoder cannot be imported or loaded."""
    others = " or ".join(other for other in DECODERS if other != name)
    # PyAV lists the packets of every video, whichever decoder reads it
    choice = "; every video needs it" if name == "pyav" else f", or choose decoder {others}"
    return InputError(f"the decoder {name} does not load ({told(error)}): pip install {package}{choice}")


def unreadable(path: Path, what: str, error: BaseException) -> Unreadable:
    """The error of a file, from that of a library."""
    return Unreadable(path, what, told(error))


def told(error: BaseException) -> str:
    """What a library's error says, in one short line: what comes before its stack trace, or the type of the error."""
    said = getattr(error, "strerror", None) or SOURCE.sub("", str(error)).split("Stack trace")[0]
    lines = [" ".join(line.split()) for line in said.splitlines()]
    return next((line for line in lines if line), type(error).__name__)[:LONGEST]


def check_frames(frames: np.ndarray, count: int, path: Path) -> np.ndarray:
    """``frames`` as int64 [T], all of them among ``count``."""
    frames = np.asarray(frames, dtype=np.int64)
    if frames.size and not 0 <= frames.min() <= frames.max() < count:
        raise IndexError(f"{path} has {count} frames, asked for {frames.tolist()}")
    return frames


def box_of(region: Region, height: int, width: int, path: Path) -> tuple[int, int, int, int]:
    """The box of a region in frames of that size, within them: top, left, height and width."""
    top, left, tall, wide = region(height, width)
    within = 0 <= top < top + tall <= height and 0 <= left < left + wide <= width
    assert within, f"{path}: {tall} x {wide} pixels at {top}, {left} are not within {height} x {width}"
    return top, left, tall, wide


def part(pixels: np.ndarray, region: Region, path: Path) -> np.ndarray:
    """The region of frames [...,H,W,3], as a view."""
    top, left, height, width = box_of(region, *pixels.shape[-3:-1], path)
    return pixels[..., top : top + height, left : left + width, :]
