"""The feature cache on the disk: one folder of arrays, complete or not there at all.

    features.npy   [F,T*N,D]  latents of all rows, episode after episode: N tokens of each of T steps
    action.npy, proprio.npy, state.npy, reward.npy, terminated.npy   [F,...]  the columns that the data has, raw
    start.npy      [F]        first frame of a clip, where rows are clips
    offsets.npy    [E+1]      episode i holds the rows offsets[i] to offsets[i+1]
    meta.json                 where it came from, the specs, and which episodes belong to which split

A row is a frame or a clip. Frames are encoded one by one (T=1), in environment steps; the frame skip is applied when
the cache is read. Clips are encoded whole: an episode is a video, its rows are the clips that were taken from it, and
``state`` holds its labels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
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

import jepa
from jepa.errors import DISK_FULL, InputError
from jepa.schema import Episodes

log = logging.getLogger(__name__)

FORMAT, VERSION = "jepa-features", 2
META = "meta.json"
COLUMNS = ("action", "proprio", "state", "reward", "terminated")

Pool = Literal["none", "mean", "space", "time"]
AVERAGED: dict[Pool, tuple[int, ...]] = {"none": (), "mean": (1, 2), "space": (2,), "time": (1,)}  # axes of [B,T,N,D]


def pool_tokens(z: Tensor, pool: Pool) -> Tensor:
    """``z [B,T,N,D]`` as it is, or averaged over tokens (space), over steps (time) or over both (mean)."""
    return z.mean(AVERAGED[pool], keepdim=True) if AVERAGED[pool] else z


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
    """A ``.npy`` file that is written front to back; how many rows it has is known in the end.

    Written with ``write``, not through a memory map: on a full disk the former raises, the latter kills the process.
    """

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.file: BinaryIO = path.open("wb")
        self.shape, self.dtype, self.rows = like.shape[1:], like.dtype, 0
        self._head()

    def _head(self) -> None:
        description = np.lib.format.dtype_to_descr(self.dtype)
        head = {"descr": description, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, head)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self.shape, f"rows of {rows.shape[1:]} after rows of {self.shape}"
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        begin = self.file.tell() - self.rows * math.prod(self.shape) * self.dtype.itemsize
        self.file.seek(0)
        self._head()  # numpy leaves room in a header for the first axis to grow
        assert self.file.tell() == begin, f"a header of {self.file.tell()} bytes over one of {begin}"
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class Columns:
    """All columns of a cache, which grow together.

    Args:
        folder: where their files go.
        rows: how many rows are expected at most; the disk must have room for them.
        out: the cache's name in messages.
    """

    def __init__(self, folder: Path, rows: int, out: Path) -> None:
        self.folder, self.rows, self.out = folder, rows, out
        self._columns: dict[str, Column] = {}

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Rows of every column; the first ones decide which columns there are, their shapes and types."""
        if not self._columns:
            check_room(self.out, self.rows * sum(value[:1].nbytes for value in arrays.values()), self.folder)
            self._columns = {name: Column(self.folder / f"{name}.npy", value) for name, value in arrays.items()}
        assert arrays.keys() == self._columns.keys(), f"{sorted(arrays)} after {sorted(self._columns)}"
        for name, value in arrays.items():
            self._columns[name].append(value)

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *error: object) -> None:
        for column in self._columns.values():
            column.close()


def check_room(out: Path, need: int, folder: Path) -> None:
    """Say how much room a cache takes; InputError where the disk of ``folder`` has less."""
    free = shutil.disk_usage(folder).free
    told = f"{out} needs {need / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free"
    if need > free:
        raise InputError(f"{told}: make room, set pool to mean, space or time, or limit the episodes")
    log.info(told)


def exists(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether ``out`` already is this cache. Anything else at that place is refused, never mixed or overwritten."""
    if not out.exists():
        return False
    try:
        meta = json.loads((out / META).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{out} exists and is not a feature cache: give another --out or remove it") from error
    if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{out} holds a cache of another version of jepa: give another --out or remove it")
    different = [key for key in identity if meta.get(key) != identity[key]]
    if different:
        raise InputError(
            f"{out} holds a feature cache made from other {', '.join(different)} (its checkpoint: "
            f"{meta.get('checkpoint') or 'not recorded'}): give another --out or remove it"
        )
    return True


def write_meta(folder: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """``meta.json``: what identifies the cache, and what else is worth knowing of it."""
    software = {"jepa": jepa.__version__, "torch": torch.__version__, "numpy": np.__version__}
    meta = {"format": FORMAT, "version": VERSION, **identity, **about, "software": software}
    (folder / META).write_text(json.dumps(meta, indent=1))


def read_meta(folder: Path) -> dict[str, Any]:
    """What :func:`write_meta` wrote; InputError where the folder is no cache of this version."""
    try:
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a feature cache (no {META}): make one with jepa embed") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / META} cannot be read ({error}): remove it and embed again") from error
    found = (meta.get("format"), meta.get("version")) if isinstance(meta, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise InputError(f"{folder} is of format {found}, expected {(FORMAT, VERSION)}: remove it and embed again")
    return meta


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
