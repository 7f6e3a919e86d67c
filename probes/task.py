"""Fit a probe on a feature cache, score it on unseen episodes, and write the report: the work of ``jepa probe``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning
import torch

import jepa
from jepa.errors import InputError
from jepa.tasks.features import META
from probes.base import Probe
from probes.cache import FeatureCache, Segments
from probes.protocol import Fitted, Protocol, check_same_data, fit
from probes.report import ProbeReport, check_writable, compare, write
from probes.training import Accelerator, check_training

log = logging.getLogger(__name__)

MAKE = {"untrained": "jepa embed -c embed/NAME --world.untrained=true", "pixels": "jepa embed -c embed/pixels_NAME"}


def probe(
    features: Path,
    probe: Probe,
    target: str,
    out: Path,
    baselines: dict[str, Path] | None = None,
    epochs: int = 20,
    batch: int = 256,
    lr: Sequence[float] = (3e-4, 1e-3, 3e-3),
    weight_decay: Sequence[float] = (0.01,),
    halving: int | None = None,
    reach: int = 16,
    segments: Segments = "each",
    labelled: float | list[float] = 1.0,
    seed: int = 0,
    seeds: int = 1,
    accelerator: Accelerator = "auto",
) -> ProbeReport:
    """Fit a probe on the training episodes of a feature cache and score it on the test episodes.

    Writes ``out/report.json``, ``out/row.md``, ``out/figure.svg`` and ``out/probe.safetensors`` (of the first seed and
    the most labels), and returns the report. Intervals are 95 % bootstrap intervals over test episodes, and over seeds
    where there are several. epochs, batch, lr, weight_decay and halving concern probes without a closed form.

    Args:
        features: feature cache of the frozen encoder (``jepa embed``); {seed} in it stands for 0, 1, ... up to seeds.
        probe: the probe, by class_path, e.g. probes.linear.LinearProbe.
        target: what to read out: names of state dimensions (comma-separated), state, proprio, action or reward; or
            map, the labels of all tokens (probes.dense.DenseProbe).
        out: folder for the report.
        baselines: name to feature cache over the same data, e.g. of the untrained encoder or of raw pixels; the same
            probe is fitted on each of them. {seed} as in features.
        epochs: passes over the training examples.
        batch: examples of a batch.
        lr: peak learning rates to try.
        weight_decay: weight decays to try.
        halving: factor by which the heads become fewer, in steps, by what is held out (successive halving); null
            trains all of them to the end.
        reach: how far goals may lie, in model steps (probes that read a goal).
        segments: of several clips of a video: each is an example of its own; or joint, where a probe reads all segments
            of a video at once, and what it answers for each view (crop) is averaged.
        labelled: part of the training episodes whose labels are known, drawn by the seed (low-shot evaluation); of
            several, each lies within the next, and the report has a learning curve.
        seed: of the initial weights, the order, the held-out part, the labelled part, the goals and the bootstrap.
        seeds: how often to repeat all of it, with seed, seed + 1, and so on.
        accelerator: cpu, gpu or auto.
    """
    if seeds < 1:
        raise InputError(f"seeds={seeds}: expected at least 1")
    training = {"epochs": epochs, "batch": batch, "lr": list(lr), "weight_decay": list(weight_decay)}
    training |= {"halving": halving, "accelerator": accelerator}
    check_training(**training)
    parts = _parts(labelled)
    check_writable(Path(out))
    numbers = range(seed, seed + seeds)
    sources = _sources(features, baselines or {}, seeds)
    how = Protocol(target, reach, segments, training)
    curve = {
        part: {name: _fit_seeds(name, paths, probe, how, part, numbers) for name, paths in sources.items()}
        for part in parts
    }
    kind, first = type(probe), curve[parts[-1]][""][0]
    report = ProbeReport(
        probe=f"{kind.__module__}.{kind.__qualname__}",
        target=target,
        reads=probe.reads,
        recipe=first.recipe,
        **compare(curve, numbers),
        settings={**how.training, "reach": reach, "segments": segments, "labelled": parts, "seed": seed},
        software={"jepa": jepa.__version__, "torch": torch.__version__, "lightning": lightning.__version__},
    )
    write(Path(out), first.probe, report)
    return report


def _parts(labelled: float | Sequence[float]) -> list[float]:
    """Each part of the labels once, ascending."""
    parts = sorted({float(labelled)} if isinstance(labelled, (int, float)) else set(map(float, labelled)))
    if not parts or not 0 < parts[0] <= parts[-1] <= 1:
        raise InputError(f"labelled={labelled}: expected parts of the training episodes, above 0 and up to 1")
    return parts


def _sources(features: Path, baselines: Mapping[str, Path], seeds: int) -> dict[str, list[Path]]:
    """The caches of every seed, the encoder's under the name "": all there, and all of the same data."""
    if "" in baselines:
        raise InputError(f"a baseline without a name ({baselines['']}): give for example --baselines.untrained=PATH")
    sources = {
        name: [Path(str(path).replace("{seed}", str(number))) for number in range(seeds)]
        for name, path in {"": features, **baselines}.items()
    }
    first = FeatureCache(sources[""][0])
    for name, paths in sources.items():
        if name:
            _check_there(name, paths)
        caches = [FeatureCache(path) for path in dict.fromkeys(paths)]
        check_same_data(f"baseline {name}" if name else "features", caches, first)
    return sources


def _check_there(name: str, paths: Sequence[Path]) -> None:
    for path in paths:
        if not (path / META).is_file():
            make = MAKE.get(name, "jepa embed -c embed/NAME")
            raise InputError(
                f"baseline {name}: there is no feature cache at {path}; make it, `{make} --out={path}`, or do without, "
                "--baselines=null"
            )


def _fit_seeds(
    name: str, paths: Sequence[Path], probe: Probe, how: Protocol, labelled: float, seeds: Sequence[int]
) -> list[Fitted]:
    fits = []
    for path, seed in zip(paths, seeds):
        log.info("%s: %g %% of the labels, seed %d", name or "encoder", 100 * labelled, seed)
        fits.append(fit(path, probe, how, labelled, seed))
    return fits
