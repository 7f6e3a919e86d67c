"""Tables in parquet files: columns by name, numbers as arrays and text as lists of strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.errors import InputError
from jepa.files import replacing


def write_table(path: Path, columns: Mapping[str, Sequence[Any]], about: str) -> None:
    """Write columns of one length, under a temporary name that becomes ``path`` when all is on the disk.

    Args:
        path: The file; its folder is made.
        columns: Name -> array of numbers or booleans, or strings.
        about: What the table is, and its version: :func:`read_table` asks for it.
    """
    table = pa.table({name: _written(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({"jepa": about})
    with replacing(path, lasting=True) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_table(path: Path, about: str) -> dict[str, np.ndarray | list[str]]:
    """The columns of a file of :func:`write_table`.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    table = _opened(path)
    found = (table.schema.metadata or {}).get(b"jepa", b"").decode()
    if found != about:
        raise InputError(f"{path} is {found or 'no table of jepa'!r}, expected {about!r}; write it again")
    return {name: _read(table.column(name)) for name in table.column_names}


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns of a parquet file that anybody wrote, as plain values.

    Raises:
        InputError: the file is missing or damaged.
    """
    table = _opened(path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _opened(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as parquet ({reason}); write it again") from error


def _written(values: Sequence[Any]) -> pa.Array:
    return pa.array(values if isinstance(values, np.ndarray) else list(values))


def _read(column: pa.ChunkedArray) -> np.ndarray | list[str]:
    return column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()
