"""Writing checkpoints so that a crash, a kill or a full disk never costs one that was finished."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from jepa.errors import DISK_FULL, InputError
from jepa.files import replacing


@contextmanager
def whole(path: Path, advice: str) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place when the block ends well, and vanishes otherwise.

    Raises:
        InputError: there is no room, which ends with the advice; or the place is none that can be written to.
    """
    try:
        with replacing(path) as partial:
            yield partial
    except (OSError, RuntimeError, SafetensorError) as error:
        if _disk_is_full(error):
            kind = error.__class__.__name__
            raise InputError(f"no room to write the checkpoint {path} ({kind}): {advice}") from error
        code = _code(error)
        if code in (None, errno.EIO):  # a device that fails is nobody's mistake
            raise
        code = errno.ENOTDIR if code == errno.EEXIST else code  # a file where its folder should be made
        raise InputError(f"cannot write {path}: {os.strerror(code)}; name another folder or file") from error


def save(content: Any, path: Path) -> None:
    """Write with torch.save, and to the disk rather than to its cache."""
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the destination, flush to the disk, rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        advice = "earlier checkpoints are whole; free some space and resume with --ckpt_path last"
        with whole(Path(path), advice) as partial:
            save(checkpoint, partial)


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error is, or came of, a write that found no room: torch and safetensors hide it in their own."""
    return error is not None and (_code(error) in DISK_FULL or _disk_is_full(error.__cause__ or error.__context__))


def _code(error: BaseException) -> int | None:
    """The number of the system's error, which safetensors has in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(found[1]) if found else None
