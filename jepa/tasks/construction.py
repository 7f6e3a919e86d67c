"""A feature cache while it is written: shard by shard, so that a run that is killed goes on where it was.

It grows in a folder of its own beside its place, ``.NAME.partial``, and takes its name when it is whole. In it:

    progress.json          what the cache is to be, and what of it is done: replaced, as a whole, after every shard
    COLUMN-00003.npy       shards that are done; those behind the last one that progress.json counts are made again
    .COLUMN-00003.npy.new  the shard that is being written
    lock                   locked by the process that writes

Items are what the rows are made of, in order, numbered: the frames or the clips of the data. One that cannot be read
has no row, and stays without one after a run went on, whether or not it can be read then.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from jepa.errors import DISK_FULL, InputError
from jepa.tasks.features import META, OFFSETS, differences, meta_of

log = logging.getLogger(__name__)

PROGRESS, LOCK = "progress.json", "lock"
MEGABYTE = 1_000_000
REMEDY = "make room, set pool or quantise to keep less, or limit the data"


class Column:
    """A ``.npy`` file that is written front to back; how many rows it has is known in the end.

    Written with ``write``, not through a memory map: on a full disk the former raises, the latter kills the process.
    """

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.path, self.new = path, path.with_name(f".{path.name}.new")
        self.file: BinaryIO = self.new.open("wb")
        self.shape, self.dtype, self.rows = like.shape[1:], like.dtype, 0
        self._head()

    def _head(self) -> None:
        description = np.lib.format.dtype_to_descr(self.dtype)
        head = {"descr": description, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, head)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self.shape, f"rows of {rows.shape[1:]} after rows of {self.shape}"
        assert rows.dtype == self.dtype, f"rows of {rows.dtype} after rows of {self.dtype}"
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Make it last, under its name."""
        begin = self.file.tell() - self.rows * math.prod(self.shape) * self.dtype.itemsize
        self.file.seek(0)
        self._head()  # numpy leaves room in a header for the first axis to grow
        assert self.file.tell() == begin, f"a header of {self.file.tell()} bytes over one of {begin}"
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.new, self.path)

    def discard(self) -> None:
        try:
            self.file.close()
        except OSError:  # what was buffered has no room either
            pass
        self.new.unlink(missing_ok=True)


class Construction:
    """The cache ``out`` in the making: a context, which keeps the shards that are done when it is left early.

    Args:
        out: the folder that it will be.
        identity: what identifies the cache.
        software: versions that make the numbers: a cache is begun and finished by the same.
        shard_mb: megabytes of the largest file of a shard.

    Raises:
        InputError: on entering, another process writes this cache, or shards of another cache lie there unfinished.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], software: Mapping[str, str], shard_mb: int) -> None:
        if shard_mb < 1:
            raise InputError(f"shard_mb={shard_mb}: expected at least 1, megabytes of a file")
        self.out, self.folder = out, out.with_name(f".{out.name}.partial")
        self.identity, self.software, self.shard_mb = dict(identity), dict(software), shard_mb
        self.done: dict[str, Any] = {"shards": 0, "rows": 0, "items": 0, "size": 0, "left_out": {}, "notes": {}}
        self._columns: dict[str, Column] = {}

    def __enter__(self) -> Construction:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(f"{self.out} is being written by another process: wait for it, or end it") from error
        try:
            self._resume()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _resume(self) -> None:
        """Take up what is done; what another cache left is removed where it has no whole shard, else refused."""
        if self.out.exists():
            shutil.rmtree(self.folder)
            raise InputError(f"{self.out} was finished by another process: repeat the command, which will keep it")
        path = self.folder / PROGRESS
        try:
            found = json.loads(path.read_text()) if path.exists() else self.done
        except ValueError as error:
            raise InputError(f"{path} cannot be read ({error}): remove {self.folder} and embed again") from error
        known = {**self.identity, "software": self.software}
        different = differences(found.get("made", {}), known) if found["shards"] else ""
        if different:
            raise InputError(
                f"{self.folder} holds a cache that was begun with other {different}: finish it with these, or remove "
                "that folder to begin anew"
            )
        if found["shards"] or not differences(found.get("made", {}), known):
            self.done = found
        if self.done["rows"]:
            log.info("%s was begun: going on behind its %d rows", self.out, self.done["rows"])
        for stale in (*self.folder.glob(".*.new"), *(() if found is self.done else self.folder.glob("*.npy"))):
            stale.unlink()
        self._save_progress()

    @property
    def begin(self) -> int:
        """The first item without a row in the shards that are done."""
        return self.done["items"]

    @property
    def left_out(self) -> dict[int, str]:
        """Items that could not be read, and the file of each."""
        return {int(item): file for item, file in self.done["left_out"].items()}

    def leave_out(self, items: Mapping[int, str]) -> None:
        """Note items that cannot be read, before any behind them is appended; those that have a row keep it."""
        if fresh := {str(item): file for item, file in items.items() if item >= self.begin}:
            self.done["left_out"] |= fresh
            self._save_progress()

    def recall(self, name: str) -> Any:
        """What :meth:`note` was told in this run or one before; None where nothing was."""
        return self.done["notes"].get(name)

    def note(self, name: str, value: Any, **arrays: np.ndarray) -> None:
        """Keep a value, and arrays as files of their names, for when a run goes on."""
        for file, held in arrays.items():
            _write(self.folder / f"{file}.npy", lambda out, held=held: np.save(out, held))  # noqa: B023
        self.done["notes"][name] = value
        self._save_progress()

    def expect(self, row: Mapping[str, np.ndarray], total: int) -> None:
        """Say what ``total`` rows like the ``row [1,...]`` of every column need on the disk, before any is made.

        Raises:
            InputError: it has less room.
        """
        self.done["size"] = self.done["size"] or max(
            1, self.shard_mb * MEGABYTE // max(value.nbytes for value in row.values())
        )
        each = sum(value.nbytes for value in row.values())
        need, left = total * each, (total - self.done["rows"]) * each
        free = shutil.disk_usage(self.folder).free
        told = f"{self.out} needs {need / 1e6:,.1f} MB"
        told += f" ({left / 1e6:,.1f} MB still)" if left < need else ""
        told += f", {free / 1e6:,.1f} MB are free"
        if left > free:
            raise InputError(f"{told}: {REMEDY}")
        log.info(told)

    def append(self, items: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Rows of every column and the items ``int64 [n]``, ascending, that they are of; those that are done are passed
        over."""
        fresh = items >= self.begin
        items, arrays = items[fresh], {name: value[fresh] for name, value in arrays.items()}
        while len(items):
            if not self._columns:
                self._columns = {name: Column(self._path(name), value) for name, value in arrays.items()}
            assert arrays.keys() == self._columns.keys(), f"{sorted(arrays)} after {sorted(self._columns)}"
            count = min(len(items), self.done["size"] - next(iter(self._columns.values())).rows)
            for name, value in arrays.items():
                self._columns[name].append(value[:count])
            if next(iter(self._columns.values())).rows == self.done["size"]:
                self._close_shard(int(items[count - 1]) + 1)
            items, arrays = items[count:], {name: value[count:] for name, value in arrays.items()}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}-{self.done['shards']:05d}.npy"

    def _close_shard(self, items: int) -> None:
        rows = next(iter(self._columns.values())).rows
        for column in self._columns.values():
            column.close()
        self._columns = {}
        _sync(self.folder)
        self.done |= {"shards": self.done["shards"] + 1, "rows": self.done["rows"] + rows, "items": items}
        self._save_progress()

    def finish(self, offsets: np.ndarray, about: Mapping[str, Any]) -> None:
        """Close the last shard, say what the cache is, and give it its name."""
        if self._columns:
            self._close_shard(int(np.iinfo(np.int64).max))
        assert offsets[-1] == self.done["rows"], f"{self.done['rows']} rows of {offsets[-1]}"
        counts = {"rows": self.done["rows"], "shards": self.done["shards"]}
        meta = meta_of(self.identity, {**counts, **self.done["notes"], **about, "software": self.software})
        _write(self.folder / OFFSETS, lambda file: np.save(file, offsets.astype(np.int64)))
        _write(self.folder / META, lambda file: file.write(meta.encode()))
        self.folder.rename(self.out)
        _sync(self.out.parent)
        for name in (PROGRESS, LOCK):
            (self.out / name).unlink()

    def _save_progress(self) -> None:
        progress = self.done | {"made": {**self.identity, "software": self.software}}
        _write(self.folder / PROGRESS, lambda file: file.write(json.dumps(progress).encode()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in self._columns.values():
            column.discard()
        if self.folder.exists() and not self.done["shards"]:
            shutil.rmtree(self.folder)  # nothing to go on from
        elif error is not None:
            log.info("%d rows of %s are kept: repeat the command to go on", self.done["rows"], self.out)
        self._lock.close()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            kept = f"free some and repeat the command, its {self.done['rows']} rows are kept"
            remedy = kept if self.done["shards"] else REMEDY
            raise InputError(f"no room for the feature cache {self.out}: {remedy}") from error


def _write(path: Path, fill: Any) -> None:
    """Write a small file that is there as a whole or not at all, and lasts."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _sync(folder: Path) -> None:
    """Make the names in a folder last."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
