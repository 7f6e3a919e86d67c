"""What is known of the files of a data set, one row for each, without opening any of them.

A data set is a folder, one file, a parquet file that ``jepa inspect video`` wrote, or a list as V-JEPA publishes them
(a path and a label in each line). Folders are probed where they hold no such parquet file, lists always: see
:mod:`jepa.data.probe`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.decoders import DECODERS, ENDINGS
from jepa.data.listing import listed, scanned
from jepa.data.parquet import read_table, write_table
from jepa.data.probe import VideoFile, probe_all
from jepa.data.strings import Strings
from jepa.errors import InputError, check_choice

log = logging.getLogger(__name__)

NAME = "index.parquet"  # of the index within the folder that it tells about
ABOUT = "video index 1"
NAMED = 3  # reasons that an error quotes


TEXTS = ("path", "hash", "reason")  # one for each file; the other strings come from few
TYPES = {"kind": np.str_, "decoder": np.str_, "frames": np.int64, "duration": np.float64, "fps": np.float64}
TYPES |= {"height": np.int32, "width": np.int32, "codec": np.str_, "variable": np.bool_, "bytes": np.int64}
KINDS = {"f": "numbers", "i": "whole numbers", "b": "booleans"}
REMEDY = ("leave it out or number its values", "write it with `jepa inspect video`")  # for labels, for our columns
COLUMNS = tuple(item.name for item in fields(VideoFile))


class VideoIndex:
    """The files of a data set, column by column; :class:`VideoFile` says what the columns are.

    Args:
        columns: Name -> one value for each file. Columns that VideoFile has not are labels: numbers.
        folder: What relative paths are relative to.
    """

    path: Strings
    kind: np.ndarray
    decoder: np.ndarray
    frames: np.ndarray
    duration: np.ndarray
    fps: np.ndarray
    height: np.ndarray
    width: np.ndarray
    codec: np.ndarray
    variable: np.ndarray
    bytes: np.ndarray
    hash: Strings
    reason: Strings

    def __init__(self, columns: Mapping[str, Any], folder: Path) -> None:
        if missing := [name for name in COLUMNS if name not in columns]:
            raise InputError(f"the index of {folder} has no column {missing[0]!r}; write it with `jepa inspect video`")
        self.folder = Path(folder)
        self.columns = {name: _column(name, values) for name, values in columns.items()}
        for name in COLUMNS:
            setattr(self, name, self.columns[name])

    @classmethod
    def open(
        cls,
        path: str | Path,
        decoder: str = "decord",
        workers: int = 0,
        time_limit: float | None = 60.0,
    ) -> VideoIndex:
        """The index of a folder, file, parquet index or list.

        A folder with an ``index.parquet`` is not probed but for files that were added or have another size since.

        Args:
            path: The data set.
            decoder: decord, pyav or torchcodec. Of decord, files that it cannot decode are left to PyAV.
            workers: Processes that probe files; 0 for all processors.
            time_limit: Seconds after which a file counts as unreadable; None waits for ever.

        Raises:
            InputError: nothing there, or no readable file.
        """
        index = cls.survey(path, decoder, workers, time_limit)
        if not len(index.readable):
            raise InputError(index.failure(path))
        if lost := len(index) - len(index.readable):
            log.warning("%d of %d files at %s cannot be read and are left out", lost, len(index), path)
        return index

    @classmethod
    def survey(
        cls,
        path: str | Path,
        decoder: str = "decord",
        workers: int = 0,
        time_limit: float | None = 60.0,
        fresh: bool = False,
    ) -> VideoIndex:
        """As :meth:`open`, but unreadable files are no error. ``fresh`` ignores an index that a folder holds."""
        path = Path(path)
        check_choice("decoder", decoder, DECODERS)
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a folder of videos, a video, a .parquet or a .csv list")
        if path.suffix == ".parquet":
            return cls(read_table(path, ABOUT), path.parent)._decoded_by(decoder)
        probing = (decoder, workers, time_limit)
        if path.is_dir():
            if (path / NAME).is_file() and not fresh:
                return cls(read_table(path / NAME, ABOUT), path)._decoded_by(decoder)._refreshed(probing)
            return cls.of(probe_all(path, [*scanned(path)], *probing), path)
        if path.suffix.lower() == ".csv":
            files, labels = listed(path)
            return cls.of(probe_all(path.parent, files, *probing), path.parent).with_labels({"label": labels})
        if path.suffix.lower() not in ENDINGS:
            raise InputError(f"{path} is no video, image, .parquet index or .csv list; expected {', '.join(ENDINGS)}")
        return cls.of(probe_all(path.parent, [path.name], *probing), path.parent)

    @classmethod
    def of(cls, rows: Iterable[VideoFile], folder: Path) -> VideoIndex:
        rows = list(rows)
        return cls({name: [getattr(row, name) for row in rows] for name in COLUMNS}, folder)

    def __len__(self) -> int:
        return len(self.path)

    @cached_property
    def readable(self) -> np.ndarray:
        """Rows of the files that can be read, int64."""
        return np.flatnonzero(self.reason.lengths == 0)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in COLUMNS)

    def file(self, row: int) -> VideoFile:
        values = {name: self.columns[name][row] for name in COLUMNS}
        return VideoFile(**{k: value.item() if isinstance(value, np.generic) else value for k, value in values.items()})

    def where(self, row: int) -> Path:
        return self.folder / self.path[row]

    def with_labels(self, labels: Mapping[str, Any]) -> VideoIndex:
        """The same files with further columns of numbers."""
        if taken := [name for name in labels if name in COLUMNS]:
            raise InputError(f"a label cannot be named {taken[0]!r}, which is a column of the index; rename it")
        return VideoIndex(self.columns | dict(labels), self.folder)

    def write(self, path: Path) -> None:
        """Write the index as parquet. Paths become relative to its folder where they lie below it."""
        old, new = os.path.abspath(self.folder), os.path.dirname(os.path.abspath(path))
        paths = self.path if old == new else [_moved(name, old, new) for name in self.path]
        write_table(Path(path), self.columns | {"path": paths}, ABOUT)

    def _take(self, rows: np.ndarray) -> dict[str, list[Any]]:
        return {name: [values[row] for row in rows] for name, values in self.columns.items()}

    def _decoded_by(self, decoder: str) -> VideoIndex:
        """The choice of another decoder than the default holds for every video of an index."""
        if decoder == "decord":
            return self
        chosen = np.where((self.kind == "video") & (self.reason.lengths == 0), decoder, self.decoder)
        return VideoIndex(self.columns | {"decoder": chosen}, self.folder)

    def _refreshed(self, probing: tuple[Any, ...]) -> VideoIndex:
        """What the folder holds now: the rows of unchanged files, and the others probed."""
        now = scanned(self.folder)
        same = [row for row, path in enumerate(self.path) if now.get(path) == self.bytes[row]]
        known = {self.path[row] for row in same}
        changed = [path for path in now if path not in known]
        if not changed and len(same) == len(self):
            return self
        log.warning(
            "%s is out of date (%d files new or changed, %d gone or changed): these are probed now; "
            "run `jepa inspect video %s` to keep that",
            self.folder / NAME,
            len(changed),
            len(self) - len(same),
            self.folder,
        )
        kept = self._take(np.array(same, np.int64))
        probed = VideoIndex.of(probe_all(self.folder, changed, *probing), self.folder)._take(np.arange(len(changed)))
        unknown = {name: [np.nan] * len(changed) for name in self.labels}
        return VideoIndex({name: [*kept[name], *(probed | unknown)[name]] for name in self.columns}, self.folder)

    def failure(self, path: str | Path) -> str:
        """What to say of files of which none can be read."""
        reasons = list(dict.fromkeys(self.reason))[:NAMED]
        said = f" ({'; '.join(reasons)})" if reasons else ""
        return f"none of {len(self)} files at {path} can be read{said}; expected videos or images: {', '.join(ENDINGS)}"


def _column(name: str, values: Any) -> np.ndarray | Strings:
    if name in TEXTS:
        if isinstance(values, Strings):
            return values
        if any(not isinstance(value, str) for value in values):
            raise InputError(f"the column {name!r} of the index lacks values; {REMEDY[True]}")
        return Strings.of(values)
    given, kind = np.asarray(values), np.dtype(TYPES.get(name, np.float64)).kind
    if len(given) and (given.dtype.kind == "f" and kind == "i" or given.dtype.kind not in "biuf" and kind in "bif"):
        what = f"label {name!r}" if name not in TYPES else f"column {name!r} of the index"
        raise InputError(f"the {what} holds {given.dtype}, expected {KINDS[kind]}; {REMEDY[name in TYPES]}")
    return given.astype(TYPES.get(name, given.dtype))


def _moved(name: str, old: str, new: str) -> str:
    """A path relative to one folder, relative to another; absolute where it is not below that."""
    path = os.path.normpath(os.path.join(old, name))
    below = os.path.join(new, "")
    return path[len(below) :] if path.startswith(below) else path
