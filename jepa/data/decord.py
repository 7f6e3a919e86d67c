"""Videos decoded by decord, as most published JEPA loaders do.

decord orders its frames by the stored times, which it has as float32. It seeks at every key frame between two wanted
frames, which costs more than decoding the frames between where key frames are dense: there the span is read through.

It decodes every frame up to the last wanted one and converts all of what it returns, which costs more than PyAV does
for H.264. It cannot decode AV1, and may show another stream than the first where a file has several. It misplaces
frames in files with leading pictures (open groups of pictures) or without stored times, in transport streams, and where
an intra refresh takes the place of key frames. :mod:`jepa.data.probe` finds these, and the index names another decoder.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch.utils.dlpack import from_dlpack

from jepa.data.decoders import Region, check_frames, missing, part, unreadable, whole

# what decord raises, beside its own DECORDError, which is an Exception and no more
FAULTS = (RuntimeError, ValueError, OSError, IndexError, AssertionError, StopIteration)
THROUGH = 8  # a span is read through when it has at most so many times the frames that are wanted


@cache
def package() -> ModuleType:
    """decord, imported at the first use and silenced: what it says of damaged files, its errors say too."""
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise missing("decord", "decord", error) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class FileReader:
    """A :class:`jepa.data.decoders.Reader` of decord, with one decoding thread."""

    codec = ""

    def __init__(self, path: Path) -> None:
        self.path, decord = path, package()
        self._shape: tuple[int, ...] | None = None
        self._faults = (*FAULTS, decord.DECORDError)
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
            stored = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0].astype(np.float64)
            rate = float(self._reader.get_avg_fps())
        except self._faults as error:
            raise unreadable(path, "cannot be opened as a video", error) from error
        self.times = _exact(stored - stored[0], rate)

    @property
    def height(self) -> int:
        return self._seen()[1]

    @property
    def width(self) -> int:
        return self._seen()[2]

    def decode(self, frames: np.ndarray, region: Region = whole) -> np.ndarray:
        frames = check_frames(frames, len(self.times), self.path)
        wanted, place = np.unique(frames, return_inverse=True)
        try:
            decoded = self._through(wanted) if self._dense(wanted) else _array(self._reader.get_batch(wanted))
        except self._faults as error:
            raise unreadable(self.path, "cannot be decoded", error) from error
        self._shape = decoded.shape
        decoded = part(decoded, region, self.path)
        return decoded if np.array_equal(wanted, frames) else decoded[place]

    def close(self) -> None:
        self.__dict__.pop("_reader", None)  # decord frees what it holds with the object

    def _seen(self) -> tuple[int, ...]:
        """The shape of decoded frames: only they say it."""
        if self._shape is None:
            self.decode(np.zeros(1, np.int64))
        return self._shape

    def _dense(self, wanted: np.ndarray) -> bool:
        """Whether most steps from one wanted frame to the next meet a key frame, and the span is not long."""
        if len(wanted) < 2 or wanted[-1] - wanted[0] >= THROUGH * len(wanted):
            return False
        group = np.searchsorted(np.asarray(self._reader.get_key_indices()), wanted, side="right")
        return 2 * np.count_nonzero(np.diff(group)) > len(wanted)

    def _through(self, wanted: np.ndarray) -> np.ndarray:
        """Decode from the first to the last, and keep what is wanted."""
        self._reader.seek_accurate(int(wanted[0]))
        kept, numbers = [], set(wanted.tolist())
        for number in range(wanted[0], wanted[-1] + 1):
            frame = self._reader.next()
            if number in numbers:
                kept.append(_array(frame))
        return np.stack(kept)


def _array(pixels: Any) -> np.ndarray:
    """What decord decoded, in its own memory, which ``asnumpy`` would copy."""
    return from_dlpack(pixels.to_dlpack()).numpy()


def _exact(times: np.ndarray, rate: float) -> np.ndarray:
    """The times in double precision where the rate is constant up to what float32 rounds away."""
    if rate > 0:
        even = np.arange(len(times)) / rate
        if np.allclose(times, even, rtol=1e-6, atol=1e-6):
            return even
    return times
