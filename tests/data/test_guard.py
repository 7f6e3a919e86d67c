"""What a guard promises: a call that hangs or crashes costs an error, never a process, a file or the program."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from jepa.data.decoders import Unreadable
from jepa.data.guard import Guard
from jepa.errors import InputError


def hang(name: str) -> None:
    """Like a decoder that is stuck in its library: no signal that can be ignored ends it."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            continue
    time.sleep(600)


def crash(name: str) -> None:
    faulthandler.disable()  # or pytest writes where it happened
    ctypes.CDLL(None).abort()


def leave(name: str) -> None:
    os._exit(3)


def refuse(name: str) -> None:
    raise Unreadable(name, "is refused", "by the test")


def err(name: str) -> None:
    raise KeyError(name)


def many(frames: int) -> tuple[np.ndarray, torch.Tensor, int, str]:
    pixels = np.arange(frames * 6, dtype=np.int16).reshape(frames, 2, 3)
    return pixels[:, ::-1], torch.arange(frames), frames, "text"


def process(name: str) -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


def state() -> tuple[int, list[str]]:
    children = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return len(os.listdir("/proc/self/fd")), sorted(children)


def test_results_and_errors_come_through() -> None:
    guard = Guard(30)
    pixels, tensor, count, text = guard(many, 4)
    assert np.array_equal(pixels, many(4)[0]) and pixels.dtype == np.int16
    assert torch.equal(tensor, torch.arange(4)) and (count, text) == (4, "text")
    assert guard(many, 0)[0].shape == (0, 2, 3) and guard(os.path.join, "a", "b") == "a/b"
    with pytest.raises(Unreadable, match="^a.mp4 is refused") as raised:
        guard(refuse, "a.mp4")
    assert raised.value.reason == "is refused: by the test"
    with pytest.raises(RuntimeError, match="KeyError: 'a.mp4'"):
        guard(err, "a.mp4")
    guard.close()


def test_one_child_serves_many_calls_with_one_thread() -> None:
    guard = Guard(30)
    (first, threads), (second, _) = guard(process, ""), guard(process, "")
    assert first == second != os.getpid() and threads == 1
    guard.close()
    assert guard(process, "")[0] != first
    guard.close()
    assert Guard(None)(process, "")[0] == os.getpid()


@pytest.mark.parametrize(
    ("function", "limit", "message"),
    [
        (hang, 0.2, "hangs the decoder .more than 0.2 seconds"),
        (crash, 60, "crashes the decoder .SIGABRT"),
        (leave, 60, "crashes the decoder .exit code 3"),
    ],
)
def test_a_failure_is_reported_and_the_next_call_works(function, limit: float, message: str) -> None:
    guard = Guard(limit)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"^b.mp4 .*{message}") as raised:
            guard(function, "b.mp4")
        assert "\n" not in str(raised.value)
        guard.seconds = 60
        assert guard(many, 2)[2] == 2
        guard.close()
        guard.seconds = limit


def test_a_child_that_died_between_two_calls_is_replaced() -> None:
    guard = Guard(30)
    child = guard(process, "")[0]
    os.kill(child, signal.SIGKILL)
    while _runs(child):
        time.sleep(0.01)
    assert guard(many, 2)[2] == 2
    guard.close()


def test_fifty_failures_leave_nothing_behind() -> None:
    before = state()
    guard = Guard(0.02)
    for number in range(50):
        with pytest.raises(InputError):
            guard((hang, crash, leave)[number % 3], "a.mp4")
    guard.close()
    assert state() == before
    dropped = Guard(30)
    dropped(many, 1)
    del dropped
    assert state() == before


def test_an_interrupt_does_not_answer_the_next_call() -> None:
    guard = Guard(30)
    guard(many, 1)
    main = threading.get_ident()
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        guard(time.sleep, 5)
    assert guard(many, 3)[2] == 3
    guard.close()


def test_abort_fails_the_call_of_another_thread() -> None:
    guard, said = Guard(60), []

    def work() -> None:
        try:
            guard(hang, "a.mp4")
        except InputError as error:
            said.append(str(error))

    guard(many, 1)
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    guard.abort()
    thread.join(20)
    assert said and "SIGKILL" in said[0]


def test_children_end_with_the_process_that_made_them() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        guards = [Guard(30), Guard(30), Guard(30)]
        os.write(writing, " ".join(str(guard(process, "")[0]) for guard in guards).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    children = [int(word) for word in os.read(reading, 99).split()]
    os.waitpid(parent, 0)
    os.close(reading)
    os.close(writing)
    assert len(children) == 3
    for _ in range(100):
        alive = [child for child in children if _runs(child)]
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"{alive} outlive their parent")


def _runs(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Guarded(Dataset):
    """Every third item hangs."""

    def __init__(self) -> None:
        self.guard = Guard(3)
        self.guard(many, 1)  # a child of the parent, which the workers must not use

    def __len__(self) -> int:
        return 6

    def __getitem__(self, item: int) -> int:
        try:
            return self.guard(hang, "a.mp4") if item % 3 == 2 else self.guard(many, item)[2]
        except InputError:
            return -1


def test_within_the_workers_of_a_loader() -> None:
    before = state()[1]
    items = Guarded()
    loader = DataLoader(items, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == [0, 1, -1, 3, 4, -1]
    assert items.guard(many, 5)[2] == 5, "the child of the parent did not survive its copies"
    items.guard.close()
    del loader
    end = time.monotonic() + 10  # of a busy machine, to let go of what the workers held
    while state()[1] != before and time.monotonic() < end:
        time.sleep(0.05)
    assert state()[1] == before


def test_a_copy_is_pickled_without_its_child() -> None:
    guard = Guard(30)
    first = guard(process, "")[0]
    copy = pickle.loads(pickle.dumps(guard))
    assert copy.seconds == 30 and copy(process, "")[0] != first
    guard.close(), copy.close()


def test_a_limit_is_positive() -> None:
    with pytest.raises(InputError, match="expected more than 0"):
        Guard(0)
