"""What a video or image file holds, and whether it can be read: its first and its last frame are decoded.

PyAV lists the packets of every video. The decoder of the user's choice must agree with that list; where decord does
not, or cannot decode the file, PyAV itself is taken if it can, and the index says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jepa.data import pyav
from jepa.data.clip_sampling import ending
from jepa.data.decoders import IMAGES, Unreadable, check_decoder, open_video
from jepa.data.guard import Guard

log = logging.getLogger(__name__)

BLOCK = 1 << 20  # bytes that are hashed together
STEADY, MILLISECOND = 0.1, 1.1e-3  # how far steps may differ at a constant rate: a part of a step, or rounded seconds
APART = 2e-3  # seconds between the times of two decoders that are the same


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
        times, codec, plain = reader.times, reader.codec, reader.table.plain
    if pyav.is_cut(path):
        raise Unreadable(path, "is truncated", "the end is missing")
    if decoder == "decord" and not plain:
        decoder = "pyav"  # decord would read other frames than those asked for
    try:
        height, width = _ends(path, decoder, times)
    except Unreadable:
        if decoder != "decord":
            raise
        decoder = "pyav"
        height, width = _ends(path, decoder, times)
    steps, duration = np.diff(times), ending(times)
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


def _ends(path: Path, decoder: str, times: np.ndarray) -> tuple[int, int]:
    """Decode the first and the last frame, and compare the times with those of the packets: height and width."""
    with open_video(path, decoder) as reader:
        if len(reader.times) != len(times) or np.abs(reader.times - times).max() > APART + 1e-6 * times[-1]:
            raise Unreadable(path, "is misread by " + decoder, f"{len(reader.times)} frames, {len(times)} stored")
        return reader.decode(np.array([0, len(times) - 1])).shape[1:3]


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
        InputError: the library of the decoder does not load.
    """
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
        size, digest = path.stat().st_size, _digest(path)
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
