"""Writing checkpoints so that a crash, a kill or a full disk never costs one that was finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from jepa.errors import DISK_FULL, InputError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the destination, flush to the disk, rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            if not _disk_is_full(error):
                raise
            raise InputError(
                f"no room to write the checkpoint {path} ({error.__class__.__name__}); earlier checkpoints are whole: "
                "free some space and resume with --ckpt_path last"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error is, or came of, a write that found no room: torch's zip writer hides it in a RuntimeError."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return error is not None and _disk_is_full(error.__cause__ or error.__context__)
