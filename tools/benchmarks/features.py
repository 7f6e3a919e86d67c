"""How long an evaluation of cached features takes, and how much memory, from ``jepa probe`` to the written report."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jepa.errors import InputError
from jepa.runtime import keep_memory
from jepa.schema import ActionSpec, ObservationSpec, Specs
from jepa.tasks.construction import Construction
from probes.base import Probe
from probes.linear import LinearProbe
from probes.neighbours import NeighbourProbe
from probes.task import probe
from tools.benchmarks import measure

PROBES = ("linear classification", "linear regression", "k-NN classification")
CHUNK = 10_000  # rows that are made at once
DIRECTIONS, NOISE = 32, 0.5  # that tell the classes apart, and what all dimensions have on top
SHARD_MB = 64


def features(
    rows: int = 100_000,
    width: int = 384,
    classes: int = 100,
    larger: int = 4,
    threads: int = 2,
    out: Path | None = None,
) -> str:
    """Measure linear and k-NN evaluations of pooled features, and how the memory changes with a larger cache.

    The cache is written as ``jepa embed`` writes it: float16, sharded, nine tenths of the rows for training. Every
    evaluation is a process of its own; its memory is the largest resident set that the system saw.

    Args:
        rows: of the cache
        width: of the features
        classes: of the labels
        larger: the second cache has so many times the rows; 1 leaves it out
        threads: of each evaluation
        out: a JSON file to write
    """
    if rows < 1000 or min(width, larger, threads) < 1 or classes < 2:
        raise InputError(
            f"rows={rows}, width={width}, classes={classes}, larger={larger}, threads={threads}: expected at least "
            "1000, 1, 2, 1 and 1"
        )
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in dict.fromkeys((rows, rows * larger)):
            cache = made(Path(folder) / f"features_{count}", count, width, classes)
            for name in PROBES:
                results.append({"probe": name, "rows": count, **_apart(name, cache, classes, threads)})
    with measure.threads(threads):
        about = measure.about()
    measure.write(out, {"benchmark": "features", "width": width, "results": results, "about": about})
    return measure.table(f"evaluations of pooled features of width {width}, {threads} threads", [*map(_line, results)])


def _line(result: dict[str, Any]) -> str:
    name = f"{result['probe']} of {result['rows']:,}"
    seconds = f"{result['seconds']:8.2f} s ({result['cpu_seconds']:.2f} s of CPU)"
    memory = f"{result['memory'] / 2**20:,.0f} MiB (imports {result['memory_of_imports'] / 2**20:,.0f})"
    return f"  {name:<36} {seconds}  {memory}  score {result['score']:.3f}"


def made(path: Path, rows: int, width: int, classes: int) -> Path:
    """A cache of features around the centres of the classes; two numbers are noisy linear functions of them."""
    random = np.random.default_rng(0)
    axes = random.standard_normal((DIRECTIONS, width)).astype(np.float32) / DIRECTIONS**0.5
    centres = random.standard_normal((classes, DIRECTIONS)).astype(np.float32)
    readout = random.standard_normal((width, 2)).astype(np.float32) / width**0.5
    seen = ObservationSpec(1, 1, state_names=("label", "a", "b"))
    specs = Specs(ActionSpec((), (), (), ()), seen)
    identity = {"weights": "", "data": f"made of {rows}", "dtype": "float16", "pool": "mean", "precision": "float32"}
    identity |= {"layers": None, "quantise": None, "transform": "none", "specs": specs.to_dict()}
    test = rows - rows // 10
    about = {"splits": {"train": [*range(test)], "val": [], "test": [*range(test, rows)]}, "source": ""}
    about |= {"checkpoint": "", "checkpoint_hash": None, "steps": 1, "tokens": 1, "grid": None, "width": width}
    with Construction(path, identity, {}, SHARD_MB) as build:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            label = random.integers(classes, size=count)
            noise = random.standard_normal((count, DIRECTIONS), dtype=np.float32)
            x = (centres[label] + noise) @ axes + NOISE * random.standard_normal((count, width), dtype=np.float32)
            y = x @ readout + random.standard_normal((count, 2), dtype=np.float32)
            state = np.concatenate([label[:, None], y], axis=1).astype(np.float32)
            arrays = {"features": x.astype(np.float16)[:, None], "state": state}
            if not start:
                build.expect({name: value[:1] for name, value in arrays.items()}, rows)
            build.append(np.arange(start, start + count), arrays)
        build.finish(np.arange(rows + 1), about)
    return path


def _apart(name: str, cache: Path, classes: int, threads: int) -> dict[str, float]:
    with _environment(OMP_NUM_THREADS=str(threads)):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(evaluate, name, cache, classes).result()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Within, processes that begin have these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def evaluate(name: str, cache: Path, classes: int) -> dict[str, float]:
    """Seconds, bytes of memory (all that the process ever held, and what it held before) and score of one evaluation
    in this process."""
    kinds: dict[str, tuple[Probe, str]] = {
        "linear classification": (LinearProbe(classes=classes), "label"),
        "linear regression": (LinearProbe(), "a,b"),
        "k-NN classification": (NeighbourProbe(classes=classes), "label"),
    }
    chosen, target = kinds[name]
    keep_memory()  # as the command line does
    before = _peak()
    wall, cpu = measure.clock(lambda: probe(cache, chosen, target, cache.with_name("report"), accelerator="cpu"))
    report = json.loads((cache.with_name("report") / "report.json").read_text())
    told = {"seconds": wall, "cpu_seconds": cpu, "memory": _peak(), "memory_of_imports": before}
    return told | {"score": report[report["metric"]]}


def _peak() -> int:
    """Bytes of the largest resident set of this process: of its own, not of the one that started it."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
