"""The feature cache on the disk: one folder of arrays, complete or not there at all.

    features.npy   [F,N,D]  latents of all frames, episode after episode
    action.npy, proprio.npy, state.npy, reward.npy, terminated.npy   [F,...]  the columns that the data has, raw
    offsets.npy    [E+1]    episode i holds the rows offsets[i] to offsets[i+1]
    meta.json               where it came from, the specs, and which episodes belong to which split

Frames are encoded one by one (T=1), in environment steps; the frame skip is applied when the cache is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jepa.errors import DISK_FULL, InputError
from jepa.schema import Episodes

FORMAT, VERSION = "jepa-features", 1
META = "meta.json"
COLUMNS = ("action", "proprio", "state", "reward", "terminated")

Pool = Literal["none", "mean"]


def pool_tokens(z: Tensor, pool: Pool) -> Tensor:
    """``z [B,T,N,D]`` as it is, or averaged over its tokens: ``[B,T,1,D]``."""
    return z.mean(2, keepdim=True) if pool == "mean" else z


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def header(episodes: Episodes) -> str:
    """SHA-256 over the specs (statistics included) and the length of every episode."""
    lengths = [int(episodes.length(i)) for i in range(len(episodes))]
    return hashlib.sha256(json.dumps([episodes.specs.to_dict(), lengths], sort_keys=True).encode()).hexdigest()


class Column:
    """A ``.npy`` file of known shape that is written front to back.

    Written with ``write``, not through a memory map: on a full disk the former raises, the latter kills the process.
    """

    def __init__(self, path: Path, rows: int, like: np.ndarray) -> None:
        self.file: BinaryIO = path.open("wb")
        self.shape, self.dtype = like.shape[1:], like.dtype
        description = np.lib.format.dtype_to_descr(like.dtype)
        head = {"descr": description, "fortran_order": False, "shape": (rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, head)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self.shape, f"rows of {rows.shape[1:]} after rows of {self.shape}"
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def exists(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether ``out`` already is this cache. Anything else at that place is refused, never mixed or overwritten."""
    if not out.exists():
        return False
    try:
        meta = json.loads((out / META).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{out} exists and is not a feature cache: give another --out or remove it") from error
    different = [key for key in identity if meta.get(key) != identity[key]]
    if different:
        raise InputError(
            f"{out} holds a feature cache made from other {', '.join(different)} (its checkpoint: "
            f"{meta.get('checkpoint') or 'not recorded'}): give another --out or remove it"
        )
    return True


@contextmanager
def complete(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name when the block ends well, and vanishes when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        folder.rename(out)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise InputError(f"no room for the feature cache {out}: free some, or set pool to mean") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
