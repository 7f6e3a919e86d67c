"""Read a column of a feature cache as one array, however many files it lies in and however large it is."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.errors import InputError
from jepa.tasks.features import CODEBOOKS, decode


class Shards:
    """``[F,...]``, read-only: numbers are read, and decoded, where a slice or an array of rows asks for them.

    The files are memory-mapped. The pages that an access touched are given back after it, so that what stays in memory
    is what was asked for: reading a whole cache front to back, or in any order, needs no more than one access at a
    time.

    Args:
        files: its shards, in order.
        codebooks: float32 [M,256,D/M] where the files hold codes.

    Raises:
        InputError: a file is no array, is cut off, or differs in form from the first.
    """

    def __init__(self, files: list[Path], codebooks: NDArray[Any] | None = None) -> None:
        self.files, self.codebooks = files, codebooks
        heads = [_head(path) for path in files]
        forms = {(shape[1:], stored) for shape, stored, _ in heads}
        if len(forms) > 1:
            raise InputError(f"{files[0].parent} is damaged, shards of a column differ in form: embed again")
        row, self.stored = forms.pop()
        self._begins = [begin for _, _, begin in heads]
        self._maps: dict[int, tuple[mmap.mmap, NDArray[Any]]] = {}
        self.bounds = np.cumsum([0, *(shape[0] for shape, _, _ in heads)])
        empty = decode(np.zeros((0, *row), self.stored), codebooks)
        self.shape, self.dtype = (int(self.bounds[-1]), *empty.shape[1:]), empty.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all rows, as numbers."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it, in memory."""
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Rows by a number, a slice, a mask ``[F]`` or an array of numbers of any shape: ``[...,*row]``."""
        if isinstance(index, tuple):
            raise TypeError("the rows of a column are indexed alone: index what comes back by the rest")
        if isinstance(index, slice):
            return self._rows(np.arange(*index.indices(len(self))))
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        if index.size and not -len(self) <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        rows = np.where(index < 0, index + len(self), index)
        return self._rows(rows.ravel()).reshape((*index.shape, *self.shape[1:]))

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        home = np.searchsorted(self.bounds, rows, side="right") - 1
        for number in np.unique(home).tolist():
            here = np.flatnonzero(home == number)
            memory, array = self._open(number)
            found[_dense(here)] = decode(array[_dense(rows[here] - self.bounds[number])], self.codebooks)
            memory.madvise(mmap.MADV_DONTNEED)  # mapped pages count as this process's memory
        return found

    def _open(self, number: int) -> tuple[mmap.mmap, NDArray[Any]]:
        if number not in self._maps:
            with self.files[number].open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            rows = int(self.bounds[number + 1] - self.bounds[number])
            row = _row(self.shape[1:], self.codebooks)
            array = np.frombuffer(memory, self.stored, rows * int(np.prod(row)), self._begins[number])
            self._maps[number] = memory, array.reshape(rows, *row)
        return self._maps[number]


def _row(shape: tuple[int, ...], codebooks: NDArray[Any] | None) -> tuple[int, ...]:
    """The form of a row in the files."""
    return shape if codebooks is None else (*shape[:-1], len(codebooks))


def _dense(numbers: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """As a slice, which needs no copy, where the numbers follow each other."""
    first, last = int(numbers[0]), int(numbers[-1])
    dense = last - first == len(numbers) - 1 and bool((np.diff(numbers) == 1).all())
    return slice(first, last + 1) if dense else numbers


def _head(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type, and where the numbers begin, of a ``.npy`` file that has all of them."""
    try:
        with path.open("rb") as file:
            number = np.lib.format.read_magic(file)
            if number != (1, 0):
                raise ValueError(f"version {number} of the format")
            shape, fortran, stored = np.lib.format.read_array_header_1_0(file)
            begin = file.tell()
        expected = begin + int(np.prod(shape)) * stored.itemsize
        if fortran or stored.hasobject or not shape or path.stat().st_size != expected:
            raise ValueError(f"expected {expected} bytes")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove the cache and embed again") from error
    return shape, stored, begin


def columns(folder: Path) -> list[str]:
    """Names of the columns of a cache."""
    return sorted({file.stem.rpartition("-")[0] for file in folder.glob("*-[0-9][0-9][0-9][0-9][0-9].npy")})


def column(folder: Path, name: str, meta: Mapping[str, Any]) -> Shards:
    """A column of the cache that ``folder`` holds and ``meta`` describes.

    Raises:
        InputError: there is no such column, or a shard of it is missing or damaged.
    """
    if name not in (known := columns(folder)):
        raise InputError(f"{folder} has no column {name}, it has {', '.join(known)}: choose one")
    files = [folder / f"{name}-{number:05d}.npy" for number in range(meta["shards"])]
    packed = name == "features" and meta["quantise"]
    found = Shards(files, array(folder / CODEBOOKS) if packed else None)
    if len(found) != meta["rows"]:
        raise InputError(f"{folder} is damaged, {name} has {len(found)} rows of {meta['rows']}: embed again")
    return found


def array(path: Path) -> NDArray[Any]:
    """A small array of a cache, in memory."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove the cache and embed again") from error
