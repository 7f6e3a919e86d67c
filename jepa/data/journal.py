"""A file whose changes reach the disk as a whole or not at all, whenever the process is killed.

Changes are held in memory until :meth:`JournaledFile.commit`, a write-ahead log of one entry:

1. what lies behind the committed end of the file is written there, where nothing refers to it yet;
2. what overwrites committed bytes goes, with the new size, to a new journal, which replaces that of the last commit;
3. then the same is written in place.

Whoever opens the file sees the journal applied, which changes nothing once 3 is done. So a kill during 1 or 2 leaves
the state before, and a kill during 3 the state after; a write torn in its middle, which the kernel allows a kill to do,
hurts nowhere. (Nothing here waits for the disk: a power cut is another matter.)
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from pathlib import Path

from jepa.errors import InputError

ENTRY = struct.Struct("<QQ")  # offset, length; the bytes follow
MAGIC = b"jepa.wal"


class JournaledFile:
    """A binary file object, as h5py takes it.

    Args:
        path: The file; it exists.
        journal: Its journal, which may not exist.
        write: Open for writing; False reads what was committed. One process can write at a time.
    """

    def __init__(self, path: Path, journal: Path, write: bool = False) -> None:
        self.path, self.journal = path, journal
        self._file = open(path, "r+b" if write else "rb", buffering=0)
        if write:
            self._lock()
        size, entries = _committed(journal)
        self._pending = entries  # offset and bytes, in order
        self._kept = os.fstat(self._file.fileno()).st_size if size is None else size
        self._size, self._place = self._kept, 0
        if write:
            self._apply()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InputError(f"{self.path} is being written by another process; wait for it or end it") from error

    def commit(self) -> None:
        """Make the changes since the last commit last. OSError where the disk is full: the state before stays."""
        inside, number = [], self._file.fileno()
        for offset, data in self._pending:
            cut = min(max(self._kept - offset, 0), len(data))
            if cut:
                inside.append((offset, data[:cut]))
            _write(number, data[cut:], offset + cut)
        body = struct.pack("<Q", self._size) + b"".join(ENTRY.pack(at, len(data)) + data for at, data in inside)
        fresh = self.journal.with_name(self.journal.name + ".new")
        fresh.write_bytes(MAGIC + struct.pack("<I", zlib.crc32(body)) + body)
        os.replace(fresh, self.journal)
        self._pending = inside
        self._apply()

    def _apply(self) -> None:
        for offset, data in self._pending:
            _write(self._file.fileno(), data, offset)
        os.ftruncate(self._file.fileno(), self._size)
        self._kept, self._pending = self._size, []

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, count: int = -1) -> bytes:
        data = bytearray(self._size - self._place if count < 0 else count)
        return bytes(data[: self.readinto(data)])

    def readinto(self, buffer: bytearray) -> int:
        """What is on the disk, overlaid with what is pending."""
        begin = self._place
        view = memoryview(buffer).cast("B")[: max(0, self._size - begin)]
        held = os.pread(self._file.fileno(), len(view), begin)
        view[: len(held)], view[len(held) :] = held, bytes(len(view) - len(held))
        for offset, data in self._pending:
            first, last = max(begin, offset), min(begin + len(view), offset + len(data))
            if first < last:
                view[first - begin : last - begin] = data[first - offset : last - offset]
        self._place += len(view)
        return len(view)

    def write(self, data: bytes) -> int:
        """Into memory: never fails, so that HDF5 can always close."""
        self._pending.append((self._place, bytes(data)))
        self._place += len(self._pending[-1][1])
        self._size = max(self._size, self._place)
        return len(self._pending[-1][1])

    def truncate(self, size: int | None = None) -> int:
        self._size = self._place if size is None else size
        return self._size

    def flush(self) -> None:
        """Nothing: only ``commit`` writes."""

    def close(self) -> None:
        """Forgets what was not committed."""
        self._file.close()


def _committed(journal: Path) -> tuple[int | None, list[tuple[int, bytes]]]:
    """Size of the file and bytes to put in place, from a journal that was written to its end."""
    data = journal.read_bytes() if journal.exists() else b""
    body = data[len(MAGIC) + 4 :]
    if len(body) < 8 or data[: len(MAGIC) + 4] != MAGIC + struct.pack("<I", zlib.crc32(body)):
        return None, []
    entries, place = [], 8
    while place < len(body):
        offset, length = ENTRY.unpack_from(body, place)
        place += ENTRY.size
        entries.append((offset, body[place : place + length]))
        place += length
    return struct.unpack_from("<Q", body)[0], entries


def _write(number: int, data: bytes, offset: int) -> None:
    """All of it: the system may write less than it is given."""
    left = memoryview(data)
    while left:
        done = os.pwrite(number, left, offset)
        left, offset = left[done:], offset + done
