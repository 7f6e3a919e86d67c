"""A time limit for code that cannot be interrupted: it is called in a child process, which is killed when it hangs."""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from jepa.data.decoders import Unreadable
from jepa.errors import InputError

LATE = 5.0  # seconds after the limit, when a child ends by itself: nobody was there to kill it
LONGEST = 86400  # seconds: what a system can wait for is not without bounds
_starting = threading.Lock()


class Guard:
    """Calls functions in a forked child, and raises :class:`Unreadable` where the child hangs or crashes.

    The child is made at the first call and serves the next ones, so that a call costs a message, not a process; after
    a failure another one is made. It ends with this object, or when the process that made it dies. Works in the
    daemonic workers of a DataLoader, which may have no children of multiprocessing; a copy (pickled, or forked with
    its process) makes a child of its own. One thread at a time may use a guard.

    Args:
        seconds: Time limit of a call; None calls in this process, without any protection.
    """

    def __init__(self, seconds: float | None = 60.0) -> None:
        if seconds is not None and not 0 < seconds <= LONGEST:
            expected = f"more than 0 and at most {LONGEST}, or null for none"
            raise InputError(f"the time limit is {seconds} seconds, expected {expected}")
        self.seconds = seconds
        self._child: _Child | None = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``: a function at the top of a module, of arguments that can be pickled. Arrays and tensors
        that it returns, alone or in a tuple, come as raw bytes; the rest of the result is pickled.

        Raises:
            InputError: raised by the function.
            Unreadable: it took too long, or crashed the process. The message names the first argument, or its ``file``
                where it has one.
            RuntimeError: any other error of the function, with its traceback as text.
        """
        if self.seconds is None:
            return function(*args)
        self.start()
        try:
            return self._child.call(function, args)
        except _Lost as lost:
            self.close()
            subject = getattr(args[0], "file", args[0]) if args else function.__name__
            raise Unreadable(subject, *lost.args) from None
        except BaseException:  # an interrupt leaves a reply on its way, which the next call must not find
            if self._child is not None and self._child.waiting:
                self.close()
            raise

    def start(self) -> None:
        """Make the child now, so that it is forked by this thread and not by the one that makes the first call."""
        if self.seconds is not None and (self._child is None or not self._child.ready()):
            self.close()
            self._child = _Child(self.seconds)

    def close(self) -> None:
        """Kill the child. The next call makes another one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def abort(self) -> None:
        """Let the call fail that another thread is waiting for."""
        if self._child is not None:
            self._child.kill()

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "_child": None}


class _Lost(Exception):
    """The child hung or died: what happened, and the detail."""


@dataclass
class _Raw:
    """Stands for an array in the message that goes before its bytes."""

    dtype: str
    shape: tuple[int, ...]
    tensor: bool


@dataclass
class _Raised:
    """Stands for an error of the function."""

    error: InputError | str  # the traceback of an error that is not for users


class _Child:
    """One forked process and the pipe to it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.owner, self.waiting = seconds, os.getpid(), False
        # one at a time: else two children would hold the ends of each other's pipes, and neither would see this
        # process die
        with _starting:
            self.pipe, theirs = Pipe()
            self.pid = _fork()
            if self.pid == 0:
                self.pipe.close()
                _serve(theirs, seconds)
            theirs.close()
        self.end = weakref.finalize(self, _end, self.pid, self.pipe, self.owner)

    def ready(self) -> bool:
        """Whether it lives and is ours: after a fork, it is a sibling. A pipe with news while nothing was asked is one
        that ended."""
        return self.owner == os.getpid() and not self.pipe.poll()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self.waiting = True
        try:
            self.pipe.send((function, args))
            if not self.pipe.poll(self.seconds):
                raise _Lost("hangs the decoder", f"more than {self.seconds:g} seconds")
            result = _receive(self.pipe)
        except (EOFError, ConnectionError) as error:
            raise _Lost("crashes the decoder", self._fate()) from error
        self.waiting = False
        if isinstance(result, _Raised):
            raise RuntimeError(result.error) if isinstance(result.error, str) else result.error
        return result

    def _fate(self) -> str:
        """How the child, whose pipe broke, ended: the name of a signal, or an exit code."""
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "gone"
        self.end.detach()
        self.pipe.close()
        if os.WIFSIGNALED(status):
            return signal.Signals(os.WTERMSIG(status)).name
        return f"exit code {os.waitstatus_to_exitcode(status)}"


def _fork() -> int:
    # Python 3.12 warns that a lock which another thread holds stays locked in the child. The child only runs the given
    # function: it logs nothing, draws no progress bar, and waits for none of our threads; malloc and the import system
    # mend their own locks.
    # h5py takes its lock for the time of a fork. A collection that frees an HDF5 object in another thread would wait
    # for that lock with the interpreter's in its hand, and neither thread would go on: none begins now.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    finally:
        if collecting:
            gc.enable()


def _end(pid: int, pipe: Connection, owner: int) -> None:
    """Kill and reap; in a copy of the process, whose child it is not, only close the pipe."""
    pipe.close()
    if owner != os.getpid():
        return
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # short: nothing that a decoder waits for, NFS included, withstands this signal


def _serve(pipe: Connection, seconds: float) -> NoReturn:
    """The life of a child: answer calls until the pipe ends."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        gc.freeze()  # what the parent made is not the child's to finalise
        torch.set_num_threads(1)
        while True:
            function, args = pipe.recv()
            # the kernel ends a child that hangs when its parent is no longer there to do it
            signal.setitimer(signal.ITIMER_REAL, seconds + LATE)
            _send(pipe, _attempt(function, args))
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (EOFError, ConnectionError):
        code = 0
    finally:
        os._exit(code)  # no exit handler of the parent's


def _attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return function(*args)
    except InputError as error:
        return _Raised(error)
    except Exception:
        return _Raised(f"in a guarded call of {function.__name__}:\n{traceback.format_exc()}")


def _send(pipe: Connection, result: Any) -> None:
    """A header in which arrays are only described, then the bytes of each."""
    many = type(result) is tuple
    items = result if many else (result,)
    arrays = [np.ascontiguousarray(item) for item in items if isinstance(item, (np.ndarray, Tensor))]
    pipe.send((many, [_described(item) for item in items]))
    for array in arrays:
        if array.size:
            pipe.send_bytes(array.reshape(-1).view(np.uint8))


def _described(item: Any) -> Any:
    if isinstance(item, Tensor):
        return _Raw(item.numpy().dtype.str, tuple(item.shape), True)
    return _Raw(item.dtype.str, item.shape, False) if isinstance(item, np.ndarray) else item


def _receive(pipe: Connection) -> Any:
    many, items = pipe.recv()
    for number, item in enumerate(items):
        if isinstance(item, _Raw):
            array = np.empty(item.shape, item.dtype)
            if array.size:
                pipe.recv_bytes_into(array.reshape(-1).view(np.uint8))
            items[number] = torch.from_numpy(array) if item.tensor else array
    return tuple(items) if many else items[0]
