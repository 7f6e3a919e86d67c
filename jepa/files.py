"""Files that are there whole or not at all, whatever fails while they are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jepa.errors import InputError


def unfinished(folder: Path, suffix: str) -> list[Path]:
    """What :func:`replacing` left in a folder when its process was killed."""
    return sorted(folder.glob(f".*.part{suffix}"))


@contextmanager
def replacing(path: Path, lasting: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place when the block ends well, and vanishes otherwise.

    Its folder is made. The name ends as that of ``path`` does, for those who go by it.

    Args:
        path: the file.
        lasting: wait until it is on the disk, so that a crash of the machine keeps the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        if lasting:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file; InputError, which says why, where that cannot be done."""
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            write(file)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free space or name another folder") from error
