"""Episodes in one HDF5 file: flat columns over all steps, one after the other, as stable-worldmodel stores them.

    pixels      uint8   [F,H,W,C]   one frame per chunk, gzip level 1
    action      float32 [F,a]       row t leads from frame t to t+1; the last row of an episode is NaN padding
    proprio     float32 [F,P]       optional
    state       float32 [F,X]       optional; privileged: probes, scripts and evaluation only
    reward      float32 [F]         optional, padded like the action
    terminated  bool    [F]         optional, padded like the action, with false
    ep_len      int64   [E]         frames of each episode
    ep_offset   int64   [E]         its first row

Attributes: ``format``, ``version``, ``specs`` (JSON of :class:`jepa.schema.Specs`) and ``finished``. A file without
them is read as a plain stable-worldmodel file.

A chunk is one frame: a window decompresses exactly its frames. gzip-1 reads as fast as lzf and takes little more than
half of its room on uniform images. The writer goes through a journal (:mod:`jepa.data.journal`), since HDF5 itself
leaves an unreadable file when it is killed within a write, in its SWMR mode too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from jepa.data import columns as rules
from jepa.data.columns import NAMES, episode_rows, measured
from jepa.data.journal import JournaledFile
from jepa.errors import DISK_FULL, InputError
from jepa.schema import Sample, Specs

log = logging.getLogger(__name__)

FORMAT, VERSION = "jepa.episodes", 1
INDEX = ("ep_offset", "ep_len")
ROWS = 1024  # rows per chunk of the narrow columns
CHUNK_CACHE = 16 << 20  # bytes per column: holds the chunks of a window where other writers put many frames in one


class Hdf5Episodes:
    """Episodes of one HDF5 file: a :class:`jepa.schema.Episodes`.

    The file is checked once, when the object is made, and opened again lazily in every process that reads, so that the
    object can be forked, pickled and sent to data workers. An unfinished file (``*.part``) gives the episodes that were
    committed.

    Args:
        path: The file, written by ``jepa collect`` or by stable-worldmodel.
        memory: Load the columns into memory at the first read. Workers forked after that share them.

    Raises:
        InputError: the file is missing, empty, truncated, not HDF5, of another version, lacks a column, holds columns
            of another type or shape, NaN or infinite numbers, or no episode.
    """

    def __init__(self, path: str | Path, memory: bool = False) -> None:
        self.path, self.memory = Path(path), memory
        self._tables: dict[str, Any] | None = None
        self._process = -1
        with _open(self.path) as file, _damage(self.path):
            tables = _columns(file, self.path)
            self._length, self._offset = _index(file, tables, self.path)
            if not len(self._length):
                raise InputError(f"{self.path} holds no episode; collect some first")
            for name in tables.keys() - {"video", "terminated"}:
                rules.check_finite(name, tables[name], self._length, self._offset, self.path)
            stored = _stored(file, tables, self.path)
            self.specs = stored if _finished(file) else measured(stored, tables, self._length, self._offset)
            self.columns = tuple(tables)

    def __len__(self) -> int:
        return len(self._length)

    def length(self, episode: int) -> int:
        return int(self._length[episode])

    def read(self, episode: int, frames: Any, columns: tuple[str, ...] | None = None) -> Sample:
        """Rows ``frames`` (int64 [T], any order) of an episode: video uint8 [T,C,H,W] (a permuted view), action
        float32 [T,a], proprio [T,P], state [T,X], reward [T], terminated bool [T]. Only these frames are decoded.

        ``columns`` are names of :class:`jepa.schema.Sample`; all that exist by default.
        """
        batch = self.read_many(np.array([episode]), np.asarray(frames, dtype=np.int64)[None], columns)
        return batch.map(lambda part: part[0])

    def read_many(self, episodes: np.ndarray, frames: np.ndarray, columns: tuple[str, ...] | None = None) -> Sample:
        """Frames int64 [B,T] of the episodes int64 [B], as :meth:`read` gives them with a batch axis before."""
        length = self._length[episodes]
        if frames.size and (frames.min() < 0 or (frames.max(axis=1) >= length).any()):
            raise IndexError(f"episodes {episodes} of {self.path} have {length} frames, asked for {frames.tolist()}")
        tables = self._opened()
        if missing := [name for name in columns or () if name not in tables]:
            raise InputError(f"{self.path} has no column {missing[0]!r}; it has {', '.join(tables)}")
        rows = frames + self._offset[episodes][:, None]
        wanted = tables if columns is None else columns
        with _damage(self.path):
            return Sample(**{name: rules.as_tensor(name, rules.take(tables[name], rows)) for name in wanted})

    def _opened(self) -> dict[str, Any]:
        """Column name -> array in memory, or HDF5 dataset opened by this process: a handle must not cross a fork."""
        if self._tables is None or not (self.memory or self._process == os.getpid()):
            file = _open(self.path)
            self._tables, self._process = {name: file[_stored_name(name)] for name in self.columns}, os.getpid()
            if self.memory:
                with file, _damage(self.path):
                    self._tables = self._loaded(self._tables)
        return self._tables

    def _loaded(self, tables: Mapping[str, h5py.Dataset]) -> dict[str, np.ndarray]:
        rows = int((self._offset + self._length).max())
        need = sum(rows * rules.width(table) * table.dtype.itemsize for table in tables.values())
        log.info("loading %d frames of %s into memory (%.0f MB)", rows, self.path, need / 1e6)
        if need > (free := rules.free_memory()):
            log.warning("only %.0f MB of memory are free; memory=False reads from the disk instead", free / 1e6)
        return {name: table[:rows] for name, table in tables.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": None, "_process": -1}


class Hdf5Writer:
    """Appends whole episodes to ``<path>.part`` and renames it to ``path`` when the collection is finished.

    After a kill at any moment ``<path>.part`` can be read and holds every episode appended before; ``resume=True`` goes
    on behind them, or behind those of a finished ``path``. Leaving the context with an error keeps the ``.part`` file.
    The columns are those of the first episode.

    Args:
        path: The file to write; refused if it exists and ``resume`` is false.
        specs: What the episodes hold; its statistics are replaced by those of all episodes when the file is finished.
        resume: Keep the episodes that were written before. ``episodes`` says how many there are.
    """

    def __init__(self, path: str | Path, specs: Specs, resume: bool = False) -> None:
        self.path, self.specs = Path(path), specs
        self.part = _beside(self.path, ".part")
        self.episodes = self.frames = 0
        self._disk: JournaledFile | None = None
        self._file: h5py.File | None = None
        self._closed = False
        found = [file for file in (self.part, self.path) if file.exists()]
        if found and not resume:
            raise InputError(f"{found[0]} exists already; resume it, remove it, or choose another path")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if found:
            self._go_on(found[0])

    def append(
        self,
        video: Tensor | np.ndarray,
        action: Tensor | np.ndarray,
        proprio: Tensor | np.ndarray | None = None,
        state: Tensor | np.ndarray | None = None,
        reward: Tensor | np.ndarray | None = None,
        terminated: Tensor | np.ndarray | None = None,
    ) -> None:
        """Write one whole episode of T frames.

        video uint8 [T,C,H,W]; action float [T-1,a]; proprio [T,P]; state [T,X]; reward [T-1]; terminated bool [T-1].
        Action, reward and terminated may also have T rows, as ``read`` gives them; the last one is padding.

        Raises:
            InputError: another shape, width or type than the specs say; NaN or infinite numbers; no room on the disk.
        """
        assert not self._closed, f"append to {self.path}, which is closed"
        values = (video, action, proprio, state, reward, terminated)
        rows = episode_rows(dict(zip(NAMES, values)), self.specs, self.episodes)
        with self._room(sum(values.nbytes for values in rows.values())):
            if self._file is None:
                self._begin(rows)
            self._write(rows)

    def close(self) -> None:
        """Store the statistics, finish the file and give it its name."""
        if not self.episodes:
            raise InputError(f"no episode was written to {self.path}; append at least one")
        with self._room(0):
            tables = _columns(self._file, self.part)
            self.specs = measured(self.specs, tables, *_index(self._file, tables, self.part))
            self._file.attrs["specs"] = json.dumps(self.specs.to_dict())
            self._file.attrs["finished"] = True
            self._file.close()
            self._disk.commit()
        self._disk.close()
        self._disk.journal.unlink()
        os.replace(self.part, self.path)
        self._closed = True
        log.info("wrote %d episodes, %d frames: %s", self.episodes, self.frames, self.path)

    def __enter__(self) -> Hdf5Writer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and not self._closed:
            self.close()
        elif self._file is not None and not self._closed:
            self._forget()
            log.warning("unfinished: %d episodes are kept in %s, resume goes on", self.episodes, self.part)

    def _begin(self, rows: Mapping[str, Any]) -> None:
        """A file with empty columns, which takes its name when it is complete."""
        fresh = _beside(self.part, ".new")
        fresh.write_bytes(b"")
        self._open(fresh, "w")
        self._file.attrs.update({"format": FORMAT, "version": VERSION, "specs": json.dumps(self.specs.to_dict())})
        self._file.attrs["finished"] = False
        for name, values in rows.items():
            shape = tuple(values.shape[1:])
            kind: dict[str, Any] = {"chunks": (ROWS, *shape)}
            if name == "video":
                kind = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1}
            self._file.create_dataset(_stored_name(name), (0, *shape), values.dtype, maxshape=(None, *shape), **kind)
        for name in INDEX:
            self._file.create_dataset(name, (0,), np.int64, maxshape=(None,), chunks=(ROWS,))
        self._file.flush()
        self._disk.commit()
        os.replace(fresh, self.part)

    def _open(self, path: Path, mode: str) -> None:
        journal = _beside(self.part, ".journal")
        if path != self.part:
            journal.unlink(missing_ok=True)  # of a file that was finished or never begun
        self._disk = JournaledFile(path, journal, write=True)
        self._file = h5py.File(self._disk, mode, libver=("earliest", "v110"))

    def _write(self, rows: Mapping[str, np.ndarray]) -> None:
        if differ := rows.keys() ^ _columns(self._file, self.part).keys():
            raise InputError(f"episode {self.episodes} and those before it differ in having {sorted(differ)[0]}")
        length = len(rows["video"])
        for name, values in rows.items():
            _put(self._file[_stored_name(name)], self.frames, values)
        for name, value in zip(INDEX, (self.frames, length)):
            _put(self._file[name], self.episodes, np.array([value]))
        self._file.flush()
        self._disk.commit()
        self.episodes, self.frames = self.episodes + 1, self.frames + length

    def _go_on(self, source: Path) -> None:
        """Behind the episodes of the part file, or of a copy of the finished one."""
        with _open(source) as old, _damage(source):
            tables = _columns(old, source)
            if old.attrs.get("format") != FORMAT:
                raise InputError(f"{source} was not written by this toolkit and cannot be resumed; choose another path")
            if differ := rules.differences(_stored(old, tables, source), self.specs):
                raise InputError(f"{source} cannot be resumed with other specs ({differ[0]}); choose another path")
            length, _ = _index(old, tables, source)
        if source != self.part:
            with self._room(source.stat().st_size):
                shutil.copyfile(source, fresh := _beside(self.part, ".new"))
            _beside(self.part, ".journal").unlink(missing_ok=True)
            os.replace(fresh, self.part)
        self._open(self.part, "r+")
        self._file.attrs["finished"] = False
        self.episodes, self.frames = len(length), int(length.sum())
        log.info("resuming %s behind %d episodes", self.path, self.episodes)

    @contextmanager
    def _room(self, need: int) -> Iterator[None]:
        """Turn a full disk into one line, and remove the partial file."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            endings = ("", ".new", ".journal", ".journal.new")
            unfinished = [_beside(self.part, ending) for ending in endings]
            held = sum(file.stat().st_size for file in unfinished if file.exists())
            self._forget()
            for file in unfinished:
                file.unlink(missing_ok=True)
            raise InputError(
                f"no room on the disk for {self.path}: {self.episodes} episodes took {held / 1e6:.2f} MB and the next "
                f"step needs up to {need / 1e6:.2f} MB more; {self.part} was removed, make room or choose another place"
            ) from error

    def _forget(self) -> None:
        """Close without what was not committed."""
        if self._file is not None:
            self._file.close()
            self._disk.close()
        self._closed = True


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _stored_name(name: str) -> str:
    return "pixels" if name == "video" else name


def _finished(file: h5py.File) -> bool:
    return bool(file.attrs.get("finished", False))


def _open(path: Path) -> h5py.File:
    """Open for reading what was committed; InputError where that is impossible."""
    part = _beside(path, ".part")
    if not path.is_file():
        hint = f"; an unfinished collection is at {part}" if part.exists() else "; collect it first or check the path"
        raise InputError(f"{path} is no file{hint}")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty, expected an HDF5 file of episodes; collect or copy it again")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path} is not an HDF5 file; expected one written by jepa collect or stable-worldmodel")
    with _damage(path):
        if (journal := _beside(path, ".journal")).exists():
            return h5py.File(JournaledFile(path, journal), "r", rdcc_nbytes=CHUNK_CACHE)
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """HDF5's own words for a file that ends too early or holds nonsense, in one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is truncated or damaged; copy or collect it again ({reason})") from error


def _columns(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    """Column name -> dataset, with their types, shapes and filters checked."""
    if file.attrs.get("format", FORMAT) != FORMAT or file.attrs.get("version", VERSION) != VERSION:
        found = f"{file.attrs.get('format')!r} version {file.attrs.get('version')}"
        raise InputError(f"{path} is {found}, expected {FORMAT!r} version {VERSION}; collect it again")
    found = {name: file[_stored_name(name)] for name in NAMES if _stored_name(name) in file}
    if missing := [name for name in ("pixels", "action", "ep_len") if name not in file]:
        raise InputError(f"{path} has no column {missing[0]!r}, which episodes need; it has {', '.join(file)}")
    for name, table in found.items():
        rules.check_type(name, table, f"{path}: column {_stored_name(name)!r}")
        filters = table.id.get_create_plist()
        for number in range(filters.get_nfilters()):
            if not h5py.h5z.filter_avail(filters.get_filter(number)[0]):
                raise InputError(f"{path}: {_stored_name(name)!r} is compressed by a plugin; repack it with gzip")
    return found


def _index(file: h5py.File, tables: Mapping[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Length and first row (int64 [E]) of every episode."""
    length = file["ep_len"][:].astype(np.int64).reshape(-1)
    offset = np.cumsum(length) - length
    if "ep_offset" in file:
        count = min(len(length), len(file["ep_offset"]))
        length, offset = length[:count], file["ep_offset"][:count].astype(np.int64).reshape(-1)
    rows = min(len(table) for table in tables.values())
    good = (length > 0) & (offset >= 0) & (offset + length <= rows)
    if not good.all():
        raise InputError(f"{path}: episode {int(good.argmin())} points outside of the {rows} rows; it is damaged")
    return length, offset


def _stored(file: h5py.File, tables: Mapping[str, Any], path: Path) -> Specs:
    """The specs that the file carries, or what a plain stable-worldmodel file tells."""
    if "specs" not in file.attrs:
        return rules.guessed(tables)
    try:
        specs = Specs.from_dict(json.loads(file.attrs["specs"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its specs cannot be read ({error}); collect it again") from error
    promised, found = rules.sizes(specs), rules.sizes(rules.guessed(tables))
    if differ := [name for name in found if promised[name] != found[name]]:
        name = differ[0]
        raise InputError(f"{path}: {name} is {promised[name]} in its specs and {found[name]} in its columns; repair it")
    return specs


def _put(table: h5py.Dataset, start: int, values: np.ndarray) -> None:
    table.resize(start + len(values), axis=0)
    table[start:] = values
