"""Every byte at which a commit can be cut off: what is read afterwards is the state before or the state after."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from coded_episodes import SPECS, coded

from jepa.data.hdf5 import Hdf5Episodes, Hdf5Writer
from jepa.data.journal import JournaledFile
from jepa.errors import InputError


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def killed_after(left: int) -> Iterator[Callable[[], int]]:
    """Tear the write that brings the sum of written bytes over ``left``; a change of size counts as one byte."""
    pwrite, write_bytes, ftruncate, total = os.pwrite, Path.write_bytes, os.ftruncate, left

    def spend(count: int) -> int:
        nonlocal left
        allowed, left = min(count, left), left - count
        return allowed

    def torn_pwrite(number: int, data: memoryview, offset: int) -> int:
        done = pwrite(number, bytes(data)[: spend(len(data))], offset)
        if left < 0:
            raise Killed
        return done

    def torn_write_bytes(path: Path, data: bytes) -> int:
        done = write_bytes(path, data[: spend(len(data))])
        if left < 0:
            raise Killed
        return done

    def torn_ftruncate(number: int, size: int) -> None:
        if spend(1) == 0:
            raise Killed
        ftruncate(number, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", torn_pwrite)
        patch.setattr(Path, "write_bytes", torn_write_bytes)
        patch.setattr(os, "ftruncate", torn_ftruncate)
        yield lambda: total - left


def content(file: JournaledFile) -> bytes:
    file.seek(0)
    data = file.read()
    file.close()
    return data


def test_every_cut_leaves_before_or_after(tmp_path: Path) -> None:
    path, journal = tmp_path / "a", tmp_path / "a.journal"
    seen = []
    for left in range(200):
        path.write_bytes(b"")
        journal.unlink(missing_ok=True)
        file = JournaledFile(path, journal, write=True)
        file.write(b"0123456789" * 3)
        file.commit()
        before = content(JournaledFile(path, journal))
        for offset, data in ((3, b"abc"), (25, b"crosses the end"), (40, b"behind"), (4, b"B"), (60, b"hole")):
            file.seek(offset)
            file.write(data)
        file.truncate(62)
        with killed_after(left):
            try:
                file.commit()
                done = True
            except Killed:
                done = False
        file.close()
        read = content(JournaledFile(path, journal))
        after = b"012aBc6789" + b"0123456789" + b"01234crosses the endbehind" + bytes(14) + b"ho"
        assert read in (before, after) and (not done or read == after), left
        assert content(JournaledFile(path, journal, write=True)) == read == path.read_bytes()
        seen.append(read)
        if done:
            break
    assert done and seen[0] == before and before in seen and seen.index(after) < len(seen) - 1


def test_every_cut_leaves_whole_episodes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def third(left: int) -> tuple[int, bool]:
        for old in tmp_path.iterdir():
            old.unlink()
        writer = Hdf5Writer(path, SPECS)
        for number in range(2):
            writer.append(**coded(number, 6))
        with killed_after(left) as spent:
            try:
                writer.append(**coded(2, 6))
                return spent(), True
            except Killed:
                writer._disk.close()  # as the system does
                return spent(), False

    total, done = third(1 << 30)
    assert done
    found = []
    for left in np.linspace(0, total - 1, 25).astype(int).tolist():
        assert not third(left)[1]
        store = Hdf5Episodes(tmp_path / "a.h5.part")
        found.append(len(store))
        with Hdf5Writer(path, SPECS, resume=True) as writer:
            assert writer.episodes == found[-1]
            writer.append(**coded(writer.episodes, 6))
        store = Hdf5Episodes(path)
        for number in range(len(store)):
            assert np.array_equal(store.read(number, range(6)).video.numpy(), coded(number, 6)["video"])
    assert found == sorted(found) and found[0] == 2 and found[-1] == 3


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    writer = Hdf5Writer(tmp_path / "a.h5", SPECS)
    writer.append(**coded(0, 6))
    with pytest.raises(InputError, match="is being written by another process"):
        Hdf5Writer(tmp_path / "a.h5", SPECS, resume=True)
    writer.close()
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
