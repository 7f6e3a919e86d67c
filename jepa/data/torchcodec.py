"""Videos decoded by torchcodec, which needs the shared libraries of an FFmpeg on the system.

Only its exact mode is used: the approximate one places frames by the mean rate, and is wrong for variable rates.
torchcodec does not tell the times of frames that it has not decoded: PyAV lists them from the packets.
"""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from jepa.data import pyav
from jepa.data.decoders import Region, Unreadable, check_frames, missing, part, unreadable, whole

PACKAGE = "torchcodec, install an FFmpeg with shared libraries"
FAULTS = (RuntimeError, ValueError, OSError, IndexError)  # what torchcodec raises


@cache
def package() -> ModuleType:
    """torchcodec, imported at the first use."""
    try:
        import torchcodec
        import torchcodec.decoders
    except (ImportError, OSError, RuntimeError) as error:
        raise missing("torchcodec", PACKAGE, error) from error
    if getattr(torchcodec, "ffmpeg_major_version", 0) is None:  # it imports, and fails when a file is opened
        raise missing("torchcodec", PACKAGE, OSError("it found no FFmpeg, or was built for another torch"))
    return torchcodec


class FileReader:
    """A :class:`jepa.data.decoders.Reader` of torchcodec, with one decoding thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        decoders = package().decoders
        with closing(pyav.FileReader(path)) as listed:
            self.times, self.codec = listed.times, listed.codec
        try:
            self._decoder = decoders.VideoDecoder(
                str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
        except FAULTS as error:
            raise unreadable(path, "cannot be opened as a video", error) from error
        if len(self._decoder) != len(self.times):
            counts = f"{len(self._decoder)} frames, {len(self.times)} stored"
            raise Unreadable(path, "is misread by torchcodec", counts)
        self._shape: tuple[int, ...] | None = None

    @property
    def height(self) -> int:
        return self._seen()[1]

    @property
    def width(self) -> int:
        return self._seen()[2]

    def decode(self, frames: np.ndarray, region: Region = whole) -> np.ndarray:
        frames = check_frames(frames, len(self.times), self.path)
        try:
            decoded = self._decoder.get_frames_at(frames.tolist()).data.numpy()
        except FAULTS as error:
            raise unreadable(self.path, "cannot be decoded", error) from error
        self._shape = decoded.shape
        return part(decoded, region, self.path)

    def close(self) -> None:
        self.__dict__.pop("_decoder", None)  # frees what it holds with the object

    def _seen(self) -> tuple[int, ...]:
        if self._shape is None:
            self.decode(np.zeros(1, np.int64))
        return self._shape
