"""Where the time of a decision goes: nested work on the host or on a device, without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch


class Clock:
    """Adds up the seconds of named stages.

    On CUDA it leaves events in the stream, so that timing makes nobody wait; read ``seconds`` after the device was
    waited for. Elsewhere it reads the clock of the host.

    Args:
        device: where the stages run
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = {}

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = self._now()
        yield
        self._spans.setdefault(name, []).append((start, self._now()))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, every call of which belongs to a stage."""

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*args, **options)

        return call

    def seconds(self, name: str) -> float:
        """Of all that a stage took so far; 0 if it never came."""
        spans = self._spans.get(name, ())
        if self.cuda:
            return sum(start.elapsed_time(end) for start, end in spans) / 1000
        return sum(end - start for start, end in spans)
