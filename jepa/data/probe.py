"""What a video or image file holds, and whether it can be read: some of its frames are decoded.

PyAV lists the packets of every video, and decodes its first and last frame and some between. The decoder of the user's
choice must agree with the list, and show the same frames; where decord does not, PyAV itself is taken, and the index
says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jepa.data import pyav
from jepa.data.clip_sampling import ending
from jepa.data.decoders import IMAGES, Unreadable, check_decoder, open_video
from jepa.data.guard import Guard
from jepa.errors import check_least

log = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes that are hashed together
STEADY, MILLISECOND = 0.1, 1.1e-3  # how far steps may differ at a constant rate: a part of a step, or rounded seconds
APART = 2e-3  # seconds between the times of two decoders that are the same
SAMPLES = 5  # frames, spread over a file, that every decoder must find
# how far what changes between two frames may differ in two decoders: grey levels, and a part of the change. The same
# frames gave at most 0.1 grey levels (10 bit); other frames than those asked for, from a quarter of the change on
ROUNDED, UNLIKE = 0.5, 0.15


@dataclass(frozen=True)
class VideoFile:
    """One file. Of one that is not readable, the numbers but its bytes are 0."""

    path: str  # relative to the folder of the index, or absolute
    kind: str  # "video" or "image"
    decoder: str = ""  # decord, pyav or torchcodec; pillow for images; "" where none can read it
    frames: int = 0
    duration: float = 0.0  # seconds, from the first frame until the last one leaves the screen; 0 for images
    fps: float = 0.0  # frames per second, mean; 0 for images
    height: int = 0  # pixels, as shown
    width: int = 0
    codec: str = ""
    variable: bool = False  # whether the time from frame to frame varies
    bytes: int = 0
    hash: str = ""  # SHA-256 of the content
    reason: str = ""  # why it cannot be read: a category, a colon, what was said; "" for readable files


def probe(path: Path, decoder: str) -> VideoFile:
    """Look into one file: all of its row but bytes and hash, with the path as given.

    Args:
        path: A video or an image.
        decoder: decord, pyav or torchcodec.
    """
    blank = VideoFile(str(path), "image" if path.suffix.lower() in IMAGES else "video")
    try:
        return _image(path, blank) if blank.kind == "image" else _video(path, decoder, blank)
    except Unreadable as error:
        return replace(blank, reason=error.reason)


def _image(path: Path, blank: VideoFile) -> VideoFile:
    with open_video(path) as reader:
        return replace(
            blank, decoder="pillow", frames=1, height=reader.height, width=reader.width, codec=reader.codec
        )


def _video(path: Path, decoder: str, blank: VideoFile) -> VideoFile:
    with open_video(path, "pyav") as reader:
        if pyav.is_cut(path):
            raise Unreadable(path, "is truncated", "the end is missing")
        times, codec = reader.times, reader.codec
        # decord would read other frames than those asked for, or another stream
        decoder = "pyav" if decoder == "decord" and not (reader.table.plain and reader.alone) else decoder
        numbers = _sampled(len(times))
        shown = reader.decode(numbers)
    try:
        _compare(path, decoder, times, numbers, shown)
    except Unreadable:
        if decoder != "decord":
            raise
        decoder = "pyav"
    (height, width), steps, duration = shown.shape[1:3], np.diff(times), ending(times)
    usual = np.median(steps) if len(steps) else 0.0
    return replace(
        blank,
        decoder=decoder,
        frames=len(times),
        duration=duration,
        fps=round(len(times) / duration, 6) if duration else 0.0,
        height=height,
        width=width,
        codec=codec,
        variable=bool(np.any(np.abs(steps - usual) > max(STEADY * usual, MILLISECOND))),
    )


def _sampled(frames: int) -> np.ndarray:
    """The first frame, the one behind it, and others spread evenly up to the last."""
    spread = np.linspace(0, frames - 1, SAMPLES).round().astype(np.int64)
    return np.union1d(spread, [min(1, frames - 1)])


def _compare(path: Path, decoder: str, times: np.ndarray, numbers: np.ndarray, shown: np.ndarray) -> None:
    """Raise :class:`Unreadable` where a decoder tells other times than the packets, or shows other frames than PyAV.

    Frames are sought one by one, the last one first. What changes from one to the next must be the same: libraries
    convert colours a little differently, but every frame alike."""
    if decoder == "pyav":
        return
    with open_video(path, decoder) as reader:
        if len(reader.times) != len(times) or np.abs(reader.times - times).max() > APART + 1e-6 * times[-1]:
            raise Unreadable(path, "is misread by " + decoder, f"{len(reader.times)} frames, {len(times)} stored")
        found = np.concatenate([reader.decode(np.array([number])) for number in numbers[::-1]])[::-1]
    if found.shape != shown.shape:
        sizes = " instead of ".join(f"{height} x {width} pixels" for _, height, width, _ in (found.shape, shown.shape))
        raise Unreadable(path, "is misread by " + decoder, sizes)
    for first, second in pairwise(range(len(numbers))):
        theirs, ours = (pixels[second].astype(np.int16) - pixels[first] for pixels in (found, shown))
        if np.abs(theirs - ours).mean() > ROUNDED + UNLIKE * np.abs(ours).mean():
            asked = f"frame {numbers[first]} or {numbers[second]} is another one"
            raise Unreadable(path, "is misread by " + decoder, asked)


def probe_all(
    folder: Path,
    files: Sequence[str],
    decoder: str = "decord",
    workers: int = 0,
    time_limit: float | None = 60.0,
) -> list[VideoFile]:
    """One row for each file, in order. Those that cannot be read are counted and named in the log.

    Args:
        folder: What relative names are relative to.
        files: Names of the files.
        decoder: decord, pyav or torchcodec.
        workers: Files looked at together, each in a process of its own; 0 for all processors.
        time_limit: Seconds until a file is given up; None waits for ever, and probes in this process.

    Raises:
        InputError: the library of the decoder does not load, or PyAV, which lists the packets for all of them.
    """
    check_least("workers", workers, 0)
    check_decoder("pyav")
    check_decoder(decoder)
    count = min(workers or len(os.sched_getaffinity(0)), max(1, len(files)))
    guards = [Guard(time_limit) for _ in range(count)]
    free: SimpleQueue[Guard] = SimpleQueue()
    for guard in guards:
        guard.start()
        free.put(guard)

    def look(name: str) -> VideoFile:
        guard = free.get()
        try:
            return _row(folder / name, name, decoder, guard)
        finally:
            free.put(guard)

    rows: dict[str, VideoFile] = {}
    with _pool(count, guards) as pool, _progress() as progress:
        task = progress.add_task("probing files", total=len(files))
        for done in as_completed([pool.submit(look, name) for name in files]):
            row = done.result()
            rows[row.path] = row
            if row.reason:
                log.warning("%s %s", folder / row.path, row.reason)
            progress.advance(task)
    return [rows[name] for name in files]


def _row(path: Path, name: str, decoder: str, guard: Guard) -> VideoFile:
    kind = "image" if path.suffix.lower() in IMAGES else "video"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # to open a pipe would wait for who writes to it
            return VideoFile(name, kind, reason="is no regular file: a folder, a pipe or a device")
        size, digest = about.st_size, _digest(path)
    except OSError as error:
        return VideoFile(name, kind, reason=f"cannot be opened: {error.strerror}")
    if size == 0:
        return VideoFile(name, kind, hash=digest, reason="is empty: 0 bytes")
    try:
        found = guard(probe, path, decoder)
    except Unreadable as error:
        found = VideoFile(name, kind, reason=error.reason)
    return replace(found, path=name, bytes=size, hash=digest)


def _digest(path: Path) -> str:
    """SHA-256 of a file, read block by block. Not under the time limit: it takes as long as the file is large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _pool(count: int, guards: Sequence[Guard]) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for the processes of the guards; all end with the context, at once where it is interrupted."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for guard in guards:
            guard.abort()
        raise
    finally:
        pool.shutdown()
        for guard in guards:
            guard.close()


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)
