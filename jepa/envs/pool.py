"""Several adapters stepped together: in this process, or split over worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from jepa.envs.adapter import Adapter, Moment, Traits, Vector
from jepa.errors import InputError

Start = tuple["int | None", "Vector | None", "Vector | None"]  # seed, state, goal


class Pool(Protocol):
    """Environments by number. Only those that are named are touched."""

    traits: Traits

    def reset(self, starts: dict[int, Start]) -> dict[int, tuple[Moment, Moment]]: ...

    def step(self, actions: dict[int, Vector]) -> dict[int, Moment]: ...

    def close(self) -> None: ...


class LocalPool:
    """Environments in this process, one after the other."""

    def __init__(self, build: Callable[[], Adapter], numbers: Sequence[int]) -> None:
        self.adapters = {number: build() for number in numbers}
        self.traits = next(iter(self.adapters.values())).traits

    def reset(self, starts: dict[int, Start]) -> dict[int, tuple[Moment, Moment]]:
        return {number: self.adapters[number].reset(*start) for number, start in starts.items()}

    def step(self, actions: dict[int, Vector]) -> dict[int, Moment]:
        return {number: self.adapters[number].step(action) for number, action in actions.items()}

    def close(self) -> None:
        for adapter in self.adapters.values():
            adapter.close()


class WorkerPool:
    """Environments in worker processes, which are spawned: after a fork, a GL context of the parent hangs the child."""

    def __init__(self, build: Callable[[], Adapter], num: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        self._owner: dict[int, int] = {}
        for worker, numbers in enumerate(np.array_split(np.arange(num), min(workers, num))):
            ours, theirs = context.Pipe()
            members = [int(number) for number in numbers]
            process = context.Process(target=_serve, args=(theirs, build, members), daemon=True)
            process.start()
            theirs.close()
            self._owner |= dict.fromkeys(members, worker)
            self._pipes.append(ours)
            self._processes.append(process)
        self.traits = [self._receive(pipe) for pipe in self._pipes][0]

    def reset(self, starts: dict[int, Start]) -> dict[int, tuple[Moment, Moment]]:
        return self._ask("reset", starts)

    def step(self, actions: dict[int, Vector]) -> dict[int, Moment]:
        return self._ask("step", actions)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # the worker reads the end of the file and leaves
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
        self._pipes, self._processes = [], []

    def _ask(self, method: str, inputs: dict[int, Any]) -> dict[int, Any]:
        asked = sorted({self._owner[number] for number in inputs})
        for worker in asked:
            part = {number: value for number, value in inputs.items() if self._owner[number] == worker}
            self._pipes[worker].send((method, part))
        answers = [self._receive(self._pipes[worker]) for worker in asked]
        return {number: value for answer in answers for number, value in answer.items()}

    def _receive(self, pipe: Connection) -> Any:
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.close()
            raise RuntimeError("an environment worker died; run again with workers=0 to see why") from error
        if isinstance(answer, BaseException):
            self.close()
            raise answer
        return answer


def _serve(pipe: Connection, build: Callable[[], Adapter], numbers: list[int]) -> None:
    """The life of a worker: build, then answer until the pipe closes. An error is sent in place of the answer."""
    try:
        pool = LocalPool(build, numbers)
        pipe.send(pool.traits)
        while True:
            method, inputs = pipe.recv()
            pipe.send(getattr(pool, method)(inputs))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except InputError as error:
        pipe.send(error)
    except Exception as error:  # whatever a simulator raises belongs to the parent
        pipe.send(RuntimeError(f"an environment worker failed: {type(error).__name__}: {error}"))
