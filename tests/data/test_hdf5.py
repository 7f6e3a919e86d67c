"""The store keeps what it is given, through kills and full disks, and says in one line what is wrong with a file."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from coded_episodes import SPECS, coded, write

from jepa.data.hdf5 import Hdf5Episodes, Hdf5Writer
from jepa.errors import InputError
from jepa.schema import Episodes, Specs
from jepa.testing import check_episodes

HERE = Path(__file__).parent


def test_contract(store: Hdf5Episodes) -> None:
    check_episodes(store)
    assert isinstance(store, Episodes)


def test_round_trip(store: Hdf5Episodes) -> None:
    assert [store.length(number) for number in range(len(store))] == [12, 5, 30, 12]
    for number in range(len(store)):
        given, read = coded(number, store.length(number)), store.read(number, np.arange(store.length(number)))
        for name, values in given.items():
            assert np.array_equal(getattr(read, name).numpy()[: len(values)], values), name
        assert read.action[-1].isnan().all() and read.terminated.dtype == torch.bool


def test_any_frames_in_any_order(store: Hdf5Episodes) -> None:
    read = store.read(2, [29, 3, 4, 5, 3])
    assert read.video[:, 1, 0, 0].tolist() == [29, 3, 4, 5, 3] == read.state[:, 1].tolist()
    assert store.read(2, [0], ("state",)).video is None
    many = store.read_many(np.array([3, 0]), np.array([[1, 11], [5, 2]]))
    assert many.state[..., 0].tolist() == [[3, 3], [0, 0]] and many.video[:, :, 1, 0, 0].tolist() == [[1, 11], [5, 2]]
    for outside in ([5], [-1]):
        with pytest.raises(IndexError):
            store.read(1, outside)
    with pytest.raises(InputError, match="no column 'goal'"):
        store.read(1, [0], ("goal",))


def test_statistics(store: Hdf5Episodes) -> None:
    actions = np.concatenate([coded(number, frames)["action"] for number, frames in enumerate([12, 5, 30, 12])])
    assert store.specs.action.mean == pytest.approx(actions.mean(0))
    assert store.specs.action.std == pytest.approx(actions.std(0))
    assert store.specs.observation.proprio_mean[1] == 7.0
    assert store.specs.observation.proprio_std[1] == 1.0  # constant: left unscaled
    assert replace(store.specs, action=SPECS.action, observation=SPECS.observation) == SPECS


def test_reads_only_the_frames_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Hdf5Episodes(write(tmp_path / "a.h5", [40]))
    touched: list[int] = []
    plain = h5py.Dataset.__getitem__

    def counted(self: h5py.Dataset, rows: Any) -> Any:
        if self.name == "/pixels":
            touched.extend(range(rows.start, rows.stop))
        return plain(self, rows)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    store.read(0, np.arange(2, 27, 3))
    assert touched == list(range(2, 27, 3))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["pixels"].chunks[0] == 1  # so that a frame is decompressed alone
        assert file["pixels"].compression == "gzip"


def test_processes(store: Hdf5Episodes) -> None:
    store.read(0, [0])  # opened here, read elsewhere
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(2, [7]).state.tolist() == [[2.0, 7.0]]
    child = os.fork()
    if not child:
        os._exit(int(store.read(2, [7]).state.tolist() != [[2.0, 7.0]]))
    assert os.waitpid(child, 0)[1] == 0


def append_for_ever(path: Path, said: int) -> None:
    """In a forked child, until it is killed."""
    try:
        writer = Hdf5Writer(path, SPECS, resume=True)
        while True:
            writer.append(**coded(writer.episodes % 200, 5 + writer.episodes % 7))
            os.write(said, b"%d " % writer.episodes)
    finally:
        os._exit(1)


def test_kill_at_any_moment(tmp_path: Path) -> None:
    path, part, seed = tmp_path / "a.h5", tmp_path / "a.h5.part", random.Random(0)
    held = 0
    for attempt in range(12):
        here, there = os.pipe()
        if not (child := os.fork()):
            append_for_ever(path, there)
        os.close(there)
        with open(here, "rb", buffering=0) as pipe:
            first = pipe.read(1) if attempt % 4 else b""  # every fourth is killed as soon as it opens the file
            time.sleep(seed.random() * 0.05)
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
            said = max((int(word) for word in (first + pipe.readall()).split()), default=held)
        if said:
            store = Hdf5Episodes(part)
            assert len(store) >= max(said, held)
            for number in range(held, len(store)):
                read = store.read(number, np.arange(5 + number % 7))
                assert np.array_equal(read.video.numpy(), coded(number % 200, 5 + number % 7)["video"])
            held = len(store)
    assert held >= 9
    with Hdf5Writer(path, SPECS, resume=True) as writer:
        assert writer.episodes == held
    assert len(Hdf5Episodes(path)) == held and not part.exists()


def test_resume_goes_on_behind_a_finished_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [6, 7])
    with pytest.raises(InputError, match="exists already"):
        Hdf5Writer(path, SPECS)
    with Hdf5Writer(path, SPECS, resume=True) as writer:
        writer.append(**coded(2, 9))
        assert len(Hdf5Episodes(path)) == 2  # untouched until the new one is finished
    store = Hdf5Episodes(path)
    assert [store.length(number) for number in range(3)] == [6, 7, 9]
    assert store.read(1, [3]).state.tolist() == [[1.0, 3.0]] and store.read(2, [8]).video[0, 0, 0, 0] == 2
    whole = Hdf5Episodes(write(tmp_path / "b.h5", [6, 7, 9]))
    assert not store.specs.differences(whole.specs)
    with pytest.raises(InputError, match="cannot be resumed with other specs .action.high"):
        Hdf5Writer(path, replace(SPECS, action=replace(SPECS.action, high=(2.0, 2.0))), resume=True)


def test_an_error_keeps_the_part(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt), Hdf5Writer(path, SPECS) as writer:
        writer.append(**coded(0, 6))
        raise KeyboardInterrupt
    assert not path.exists()
    with pytest.raises(InputError, match="an unfinished collection is at .*a.h5.part"):
        Hdf5Episodes(path)
    part = Hdf5Episodes(tmp_path / "a.h5.part")
    assert len(part) == 1 and part.specs.action.mean == (0.0, 2.0)
    with pytest.raises(InputError, match="no episode was written"), Hdf5Writer(tmp_path / "b.h5", SPECS):
        pass


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write(tmp_path / "other.h5", [6])
    writer = Hdf5Writer(tmp_path / "a.h5", SPECS)
    writer.append(**coded(0, 6))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"no room on the disk for .*a.h5: 1 episodes took .* up to 0.00 MB more"):
        writer.append(**coded(1, 6))
    assert [file.name for file in tmp_path.iterdir()] == ["other.h5"]
    assert len(Hdf5Episodes(other)) == 1


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from coded_episodes import SPECS, coded
from jepa.data.hdf5 import Hdf5Writer
from jepa.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer = Hdf5Writer(sys.argv[1], SPECS)
try:
    while True:
        writer.append(**coded(writer.episodes % 200, 50))
except InputError as error:
    sys.exit(str(error))
"""


def test_file_limit_of_the_system(tmp_path: Path) -> None:
    """A real failed write, in a process that must end in peace."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "a.h5"), str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and re.fullmatch("no room on the disk.*\n", done.stderr), done
    assert not list(tmp_path.iterdir())


def changed(**given: Any) -> dict[str, Any]:
    return coded(0, 6) | given


@pytest.mark.parametrize(
    ("episode", "line"),
    [
        (changed(video=np.zeros((6, 3, 8, 6), np.uint8)), "video of episode 0 is uint8 .* = \\[3, 6, 8\\]"),
        (changed(video=np.zeros((6, 3, 6, 8), np.float32)), "video of episode 0 is float32"),
        (changed(action=np.zeros((5, 3))), "action of episode 0 is \\[5, 3\\], expected \\[5, 2\\] for 6 frames"),
        (changed(action=np.zeros((4, 2))), "action of episode 0 is \\[4, 2\\]"),
        (changed(action=np.full((5, 2), np.nan)), "action of episode 0, step 0 is NaN"),
        (changed(state=None), "episode 0 has no state"),
        (changed(reward=np.array([0, 1, np.inf, 0, 0])), "reward of episode 0, step 2"),
    ],
)
def test_writer_refuses(tmp_path: Path, episode: dict[str, Any], line: str) -> None:
    writer = Hdf5Writer(tmp_path / "a.h5", SPECS)
    with pytest.raises(InputError, match=line):
        writer.append(**episode)
    writer.append(**coded(0, 6))  # and is still usable
    with pytest.raises(InputError, match="differ in having reward"):
        writer.append(**changed(reward=None))
    writer.close()
    assert len(Hdf5Episodes(tmp_path / "a.h5")) == 1


def edit(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        if name in file.attrs:
            file.attrs[name] = value
            return
        del file[name]
        if value is not None:
            file[name] = value


def poison(path: Path, number: float) -> None:
    with h5py.File(path, "r+") as file:
        file["action"][8, 1] = number


BROKEN = {
    "is empty": lambda path: path.write_bytes(b""),
    "is not an HDF5 file": lambda path: path.write_bytes(b"something else" * 100),
    "is truncated or damaged": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "is no file": lambda path: path.unlink(),
    "'jepa.episodes' version 2, expected .* version 1": lambda path: edit(path, "version", 2),
    "has no column 'pixels'": lambda path: edit(path, "pixels", None),
    "has no column 'action'": lambda path: edit(path, "action", None),
    "has no column 'ep_len'": lambda path: edit(path, "ep_len", None),
    "action of episode 1, step 2 is NaN or infinite": lambda path: poison(path, np.nan),
    "action of episode 1, step 2 is NaN or inf": lambda path: poison(path, -np.inf),
    "column 'pixels' is float32": lambda path: edit(path, "pixels", np.zeros((15, 6, 8, 3), np.float32)),
    "column 'action' is int64": lambda path: edit(path, "action", np.zeros((15, 2), np.int64)),
    "column 'action' is float32 .15.": lambda path: edit(path, "action", np.zeros(15, np.float32)),
    "action is 2 in its specs and 3 in its columns": lambda path: edit(path, "action", np.zeros((15, 3), np.float32)),
    "its specs cannot be read": lambda path: edit(path, "specs", "{"),
    "episode 1 points outside of the 15 rows": lambda path: edit(path, "ep_len", np.array([6, 10])),
    "holds no episode": lambda path: edit(path, "ep_len", np.zeros(0, np.int64)),
}


@pytest.mark.parametrize("line", BROKEN)
def test_reader_refuses(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.h5", [6, 9])
    BROKEN[line](path)
    with pytest.raises(InputError, match=line) as raised:
        Hdf5Episodes(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_plain_stable_worldmodel_file(tmp_path: Path) -> None:
    path = tmp_path / "swm.h5"
    with h5py.File(path, "w") as file:
        file["pixels"] = np.arange(9, dtype=np.uint8).repeat(48).reshape(9, 4, 4, 3)
        action = np.arange(18.0).reshape(9, 2)
        action[[4, 8]] = np.nan
        file["action"], file["proprio"] = action, np.ones((9, 3))
        file["ep_len"], file["ep_offset"] = np.array([5, 4], np.int32), np.array([0, 5])
        file["episode_idx"] = np.repeat([0, 1], [5, 4])
    store = Hdf5Episodes(path)
    check_episodes(store)
    assert store.read(1, [0, 3]).video[:, 0, 0, 0].tolist() == [5, 8]
    assert store.specs.action.high == (np.inf, np.inf) and store.specs.action.mean[0] == pytest.approx(48 / 7)
    with pytest.raises(InputError, match="not written by this toolkit"):
        Hdf5Writer(path, SPECS, resume=True)


def test_memory_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    store = Hdf5Episodes(write(tmp_path / "a.h5", [6]), memory=True)
    monkeypatch.setattr(os, "sysconf", lambda _: 1)
    monkeypatch.setattr(Path, "read_text", lambda *_: "")
    store.read(0, [0])
    assert "memory=False" in caplog.text


def test_specs_survive(tmp_path: Path) -> None:
    specs: Specs = Hdf5Episodes(write(tmp_path / "a.h5", [6])).specs
    assert specs.evaluation == SPECS.evaluation and specs.observation.state_names == ("x", "y")
