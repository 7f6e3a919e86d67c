"""Fit a probe on a feature cache, score it on unseen episodes, and write the report: the work of ``jepa probe``."""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import jepa
from jepa.errors import InputError
from probes import score
from probes.base import Probe
from probes.cache import Examples, FeatureCache, batches, hold_out
from probes.training import predict, sweep

log = logging.getLogger(__name__)

IDENTITY = ("weights", "checkpoint", "data", "pool")  # what the report repeats of a cache


class ProbeReport(dict[str, Any]):
    """Every number of a fitted probe; as text, its headline in one line."""

    def __str__(self) -> str:
        metric = "r2" if "r2" in self else "accuracy"

        def score(part: dict[str, Any], name: str = metric) -> str:
            interval = part[f"{name}_interval"]  # a single test episode has none
            between = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
            return f"{part[name]:.3f}{between}"

        name = self["probe"].rpartition(".")[2]
        told = [f"{name} of {self['target']}: {metric} {score(self)} on {self['episodes']['test']} test episodes"]
        if metric == "accuracy":
            told.append(f"most common class {self['accuracy_of_most_common']:.3f}")
        if self["baseline"] is not None:
            told += [f"baseline {score(self['baseline'])}", f"gain {score(self['gain'], 'gain')}"]
        return ", ".join(told)


@dataclass
class Fitted:
    """A probe fitted on one cache, its scores, and what it answered on the test split."""

    probe: Probe
    scores: dict[str, Any]
    prediction: Tensor
    test: Examples


def _fit_and_score(
    features: Path, probe: Probe, target: str, reach: int, labelled: float, seed: int, training: dict[str, Any]
) -> Fitted:
    """Fit a fresh copy of ``probe`` on one cache and score it on the cache's test split."""
    cache = FeatureCache(features)
    options = {"target": target, "reads": probe.reads, "classes": probe.classes, "reach": reach}
    train = cache.examples("train", seed=seed, **options)
    if labelled < 1:
        _, train = hold_out(train, labelled, seed)
    test = cache.examples("test", seed=seed + 1, **options)
    torch.manual_seed(seed)
    probe, start = copy.deepcopy(probe), time.perf_counter()
    if probe.closed_form:
        z = torch.cat([probe.reduce(z) for z, _ in batches(train, train.affordable)])
        probe.build(z, train.y)
        probe.fit(z, train.y)
        chosen = None
    else:
        probe, chosen = sweep(probe, train, seed=seed, **training)
    seconds = time.perf_counter() - start
    prediction, y = predict(probe, test)
    if not prediction.isfinite().all():
        raise InputError(f"the probe fitted on {features} answers NaN or infinity: lower lr or raise ridge")
    if probe.classes:
        result = score.classification(prediction, y, int(train.y.bincount().argmax()), test.episode, seed)
    else:
        result = score.regression(prediction, y, train.y.mean(0), test.episode, test.names, seed)
    scores = {
        **result,
        "examples": {"train": len(train), "test": len(test)},
        "episodes": {"train": len(np.unique(train.episode)), "test": len(np.unique(test.episode))},
        "head": chosen,
        "seconds": round(seconds, 3),
        "features": {"path": str(features)} | {name: cache.meta[name] for name in IDENTITY},
    }
    return Fitted(probe, scores, prediction, test)


def _comparable(features: Path, baseline: Path) -> None:
    caches = FeatureCache(features), FeatureCache(baseline)
    mine, theirs = (cache.meta for cache in caches)
    different = [key for key in ("data", "splits") if mine[key] != theirs[key]]
    if not different and not np.array_equal(*(cache.offsets for cache in caches)):
        different.append("the clips that could be read")
    if mine["specs"]["action"]["block"] != theirs["specs"]["action"]["block"]:
        different.append("frame skip")
    if different:
        raise InputError(f"baseline {baseline} differs from {features} in {', '.join(different)}: embed the same data")


def probe(
    features: Path,
    probe: Probe,
    target: str,
    out: Path,
    baseline: Path | None = None,
    epochs: int = 20,
    batch: int = 256,
    lr: Sequence[float] = (3e-4, 1e-3, 3e-3),
    weight_decay: Sequence[float] = (0.01,),
    reach: int = 16,
    labelled: float = 1.0,
    seed: int = 0,
    accelerator: str = "auto",
) -> ProbeReport:
    """Fit a probe on the training episodes of a feature cache and score it on the test episodes.

    Writes ``out/report.json`` and ``out/probe.safetensors`` and returns the report. Intervals are 95 % bootstrap
    intervals over episodes. epochs, batch, lr and weight_decay concern probes without a closed form.

    Args:
        features: feature cache of the frozen encoder (``jepa embed``).
        probe: the probe, by class_path, e.g. probes.linear.LinearProbe.
        target: what to read out: names of state dimensions (comma-separated), state, proprio, action or reward.
        out: folder for the report.
        baseline: feature cache of the untrained encoder over the same data; the same probe is fitted there too.
        epochs: passes over the training examples.
        batch: examples of a batch.
        lr: peak learning rates to try.
        weight_decay: weight decays to try.
        reach: how far goals may lie, in model steps (probes that read a goal).
        labelled: part of the training episodes whose labels are known, drawn by the seed (low-shot evaluation).
        seed: of the initial weights, the order, the goals and the bootstrap.
        accelerator: cpu, gpu or auto.
    """
    if epochs < 1 or batch < 1:
        raise InputError(f"epochs={epochs}, batch={batch}: expected at least 1 of each")
    if not 0 < labelled <= 1:
        raise InputError(f"labelled={labelled}: expected a part of the training episodes, above 0 and up to 1")
    if baseline is not None:
        _comparable(features, baseline)
    training = {"epochs": epochs, "batch": batch, "accelerator": accelerator}
    training |= {"lr": list(lr), "weight_decay": list(weight_decay)}
    mine = _fit_and_score(features, probe, target, reach, labelled, seed, training)
    beside: dict[str, Any] = {"baseline": None}
    if baseline is not None:
        other = _fit_and_score(baseline, probe, target, reach, labelled, seed, training)
        beside = {"baseline": other.scores, "gain": _gain(mine, other, seed)}
    kind = type(probe)
    report = {
        "probe": f"{kind.__module__}.{kind.__qualname__}",
        "target": target,
        "reads": probe.reads,
        **mine.scores,
        **beside,
        "settings": {**training, "reach": reach, "labelled": labelled, "seed": seed},
        "software": {"jepa": jepa.__version__, "torch": torch.__version__, "lightning": lightning.__version__},
    }
    _write(Path(out), mine.probe, report)
    return ProbeReport(report)


def _gain(mine: Fitted, other: Fitted, seed: int) -> dict[str, Any]:
    y, episode, classes = mine.test.y, mine.test.episode, bool(mine.probe.classes)
    return score.gain(mine.prediction, other.prediction, y, episode, classes, seed)


def _write(out: Path, fitted: Probe, report: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights, text = out / "probe.safetensors.partial", out / "report.json.partial"
    try:
        save_file({name: value.contiguous() for name, value in fitted.state_dict().items()}, weights)
        text.write_text(json.dumps(report, indent=1, allow_nan=False))
        os.replace(weights, out / "probe.safetensors")
        os.replace(text, out / "report.json")
    finally:
        weights.unlink(missing_ok=True)
        text.unlink(missing_ok=True)
