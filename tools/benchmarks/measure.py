"""Two ways of doing one thing, measured side by side in one process, with the spread of their ratio."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jepa
from jepa.files import write_atomically
from jepa.runtime import keep_memory

WARMUP = 1  # calls of each way before anything is measured
RESAMPLES = 2000
PRODUCT = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices that tell what the device can do
PACKAGES = ("torch", "torchvision", "numpy", "decord", "av")


@dataclass(frozen=True)
class Times:
    """Seconds of one way, float64 [repeats]."""

    wall: np.ndarray
    cpu: np.ndarray  # of this process, all threads: what else the machine does is not in it


def interleaved(ways: dict[str, Callable[[int], object]], repeats: int, device: str = "cpu") -> dict[str, Times]:
    """Times of every way, measured in turn, so that what disturbs one disturbs the others.

    Each way is called with the number of the repetition; the order turns around from one repetition to the next.
    """
    for way in ways.values():
        for number in range(min(WARMUP, repeats)):
            way(number)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(repeats):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            seconds[name].append(clock(partial(ways[name], number), device))
    return {name: Times(*np.array(values).T) for name, values in seconds.items()}


def clock(work: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """Seconds of one call, the device's included: on the wall, and of this process."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def summary(values: np.ndarray) -> dict[str, float]:
    """The median, and the 95 % interval of it that resampling gives."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def compared(times: dict[str, Times]) -> dict[str, Any]:
    """What a comparison of "published" and "ours" found. The ratio is that of the two measurements side by side."""
    theirs, mine = times["published"], times["ours"]
    return {
        "seconds": {way: summary(time.wall) for way, time in times.items()},
        "cpu_seconds": {way: summary(time.cpu) for way, time in times.items()},
        "ratio": summary(theirs.wall / mine.wall),
        "cpu_ratio": summary(theirs.cpu / mine.cpu),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The lines of a comparison."""
    return [
        told("published way", result["seconds"]["published"], "ms", 1e3),
        told("ours", result["seconds"]["ours"], "ms", 1e3),
        told("times as fast", result["ratio"], "x"),
        told("times as fast by CPU time", result["cpu_ratio"], "x"),
    ]


def matrix_product(device: str, dtype: torch.dtype, repeats: int = 9) -> float:
    """FLOP/s that a large product of square matrices reaches here: the best of the repetitions."""
    size = PRODUCT[device.split(":")[0]]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [clock(partial(torch.mm, a, b), device)[0] for _ in range(repeats)]
    return 2 * size**3 / min(seconds)


def allocate(kept: bool) -> None:
    """From here on, whoever runs in this process keeps freed memory, or not; there is no way back. By default glibc
    hands large freed tensors back to the kernel, and a way that makes many of them waits for new pages."""
    if kept:
        keep_memory()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_core() -> Iterator[None]:
    """Within, all threads of this process share one core, where the system can say so (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def about(device: str = "cpu") -> dict[str, Any]:
    """What a number means nothing without: command, machine, date, versions."""
    versions = {"python": platform.python_version(), "jepa": jepa.__version__}
    return {
        "command": " ".join(["python -m tools.benchmark", *sys.argv[1:]]),
        "machine": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "versions": versions | {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(out: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON, whole or not at all."""
    if out is not None:
        write_atomically(out, lambda file: file.write(json.dumps(result, indent=1).encode()))


def told(name: str, values: dict[str, float], unit: str, scale: float = 1.0, digits: int = 2) -> str:
    """One line: the median and its interval."""
    median, low, high = (f"{values[key] * scale:,.{digits}f}" for key in ("median", "low", "high"))
    return f"  {name:<36} {median} {unit} ({low} to {high})"


def table(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *lines])
