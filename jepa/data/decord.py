"""Frames of one video file, decoded by decord. A file is opened for each read and never held: decord's readers keep
threads and memory, and do not survive a fork."""

from __future__ import annotations

from pathlib import Path

import decord
import numpy as np

from jepa.errors import InputError


def shape(path: Path) -> tuple[int, int, int]:
    """Number of frames, height and width of a file; InputError where decord cannot read it."""
    reader = _opened(path)
    first = _decoded(reader, path, np.zeros(1, np.int64))
    return len(reader), first.shape[1], first.shape[2]


def decode(path: Path, frames: np.ndarray, size: int | None = None) -> np.ndarray:
    """Frames (int64 [T], any order) as uint8 [T,H,W,3], resized by the decoder to ``size`` x ``size`` where given."""
    return _decoded(_opened(path, size), path, frames)


def _opened(path: Path, size: int | None = None) -> decord.VideoReader:
    try:
        return decord.VideoReader(str(path), width=size or -1, height=size or -1, num_threads=1)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be opened as a video ({_reason(error)}); convert or remove it") from error


def _decoded(reader: decord.VideoReader, path: Path, frames: np.ndarray) -> np.ndarray:
    try:
        return reader.get_batch(frames.tolist()).asnumpy()
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise InputError(f"{path} cannot be decoded ({_reason(error)}); convert or remove it") from error


def _reason(error: Exception) -> str:
    """decord's errors are stack traces; the last line before the trace says what happened."""
    told = str(error).split("Stack trace")[0].split()
    return " ".join(told)[-160:]
