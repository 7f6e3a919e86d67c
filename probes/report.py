"""What a probe's report says: every number as JSON, its headline as text and as one row of a table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from jepa.errors import InputError
from jepa.files import replacing
from probes import score
from probes.base import Probe
from probes.figure import figure
from probes.protocol import Fitted
from probes.saved import REPORT, WEIGHTS
from probes.score import Scored

RULE = "best on held-out training episodes"
PUBLISHED = "maximum over heads on the test split, as published (flatters)"
ROW, FIGURE = "row.md", "figure.svg"

Runs = Mapping[str, Sequence[Fitted]]  # "" and the names of baselines -> one fit for each seed


class ProbeReport(dict[str, Any]):
    """Every number of a fitted probe; as text, its headline and what stands beside it, line by line."""

    def __str__(self) -> str:
        head = f"{_short(self)} of {self['target']}: {self['metric']} {measured(self, self['metric'])}"
        lines = [f"{head} on {self['episodes']['test']} test episodes{_seeds(self)}"]
        for name, other in self["baselines"].items():
            told = measured(other, self["metric"])
            lines.append(f"  {name}: {told}, gain {measured(other, 'gain')}")
        if self["metric"] == "accuracy":
            mean, common = self["class_mean_accuracy"], self["accuracy_of_most_common"]
            lines.append(f"  class mean {mean:.3f}, most common class {common:.3f}")
        if self["published"] is not None:
            selected, published = (self[name]["score"] for name in ("selected", "published"))
            lines.append(f"  head that is {RULE}: {selected:.3f}")
            lines.append(f"  {PUBLISHED}: {published:.3f}")
        return "\n".join([*lines, *map(self._part, self["curve"])])

    def _part(self, part: Mapping[str, Any]) -> str:
        others = [f", {name} {measured(other, self['metric'])}" for name, other in part["baselines"].items()]
        told = measured(part, self["metric"]) + "".join(others)
        return f"  {100 * part['labelled']:g} % of the labels ({part['episodes']['train']} episodes): {told}"

    @property
    def row(self) -> str:
        """A table in Markdown: its head and one row."""
        cells = {
            "probe": _short(self),
            "target": self["target"],
            "score": self["metric"],
            "encoder": measured(self, self["metric"]),
        }
        for name, other in self["baselines"].items():
            cells |= {name: measured(other, self["metric"]), f"gain over {name}": measured(other, "gain")}
        cells |= {"test episodes": str(self["episodes"]["test"]), "seeds": str(len(self["seeds"]))}
        rows = (cells, ["---"] * len(cells), cells.values())
        bar = r"\|"  # a name may hold what parts the cells
        return "".join(f"| {' | '.join(cell.replace('|', bar) for cell in row)} |\n" for row in rows)


def measured(part: Mapping[str, Any], name: str) -> str:
    """A score and its interval, where it has one: a single test episode has none."""
    value, interval = part[name], part[f"{name}_interval"] or ()
    told = [f"{round(number, 3) + 0.0:.3f}" for number in (value, *interval)]  # + 0.0: no "-0.000"
    return f"{told[0]} [{told[1]}, {told[2]}]" if interval else told[0]


def _short(report: Mapping[str, Any]) -> str:
    return report["probe"].rpartition(".")[2]


def _seeds(report: Mapping[str, Any]) -> str:
    return "" if len(report["seeds"]) == 1 else f", {len(report['seeds'])} seeds"


def compare(curve: Mapping[float, Runs], seeds: Sequence[int]) -> dict[str, Any]:
    """The scores with the most labels, of the encoder and of what it is compared with; and those with fewer.

    ``curve``: part of the labels -> fits, in ascending order.
    """
    parts = {labelled: _side_by_side(runs, seeds) for labelled, runs in curve.items()}
    whole = parts[max(parts)]
    return {**whole, "curve": [_brief(part, labelled) for labelled, part in parts.items()] if len(parts) > 1 else []}


def _side_by_side(runs: Runs, seeds: Sequence[int]) -> dict[str, Any]:
    scored = {name: fits[0].probe.scored([fitted.answers for fitted in fits], seeds[0]) for name, fits in runs.items()}
    found = {name: _numbers(fits, scored[name], seeds) for name, fits in runs.items()}
    mine = found.pop("")
    beside = {name: part | score.gain(scored[""], scored[name]) for name, part in found.items()}
    return {**mine, "baselines": beside}


def _numbers(fits: Sequence[Fitted], scored: Scored, seeds: Sequence[int]) -> dict[str, Any]:
    published, selected = [fitted.published for fitted in fits], scored.numbers[scored.numbers["metric"]]
    several = all(value is not None for value in published)
    return {
        **scored.numbers,
        "selected": {"score": selected, "rule": RULE} if several else None,
        "published": {"score": float(np.mean(published)), "rule": PUBLISHED} if several else None,
        "examples": fits[0].examples,
        "episodes": fits[0].episodes,
        "seconds": round(sum(fitted.seconds for fitted in fits), 3),
        "seeds": [_seed(fitted, seed) for fitted, seed in zip(fits, seeds)],
    }


def _seed(fitted: Fitted, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "score": fitted.probe.point(fitted.answers),
        "head": fitted.chosen,
        "published": fitted.published,
        "features": fitted.features,
    }


def _brief(part: Mapping[str, Any], labelled: float) -> dict[str, Any]:
    """What a learning curve keeps of the scores with a part of the labels."""
    metric = part["metric"]
    kept = (metric, f"{metric}_interval")
    others = {
        name: {key: other[key] for key in (*kept, "gain", "gain_interval")} for name, other in part["baselines"].items()
    }
    names = (*kept, "published", "examples", "episodes", "seconds")
    scores = [each["score"] for each in part["seeds"]]
    return {"labelled": labelled, **{key: part[key] for key in names}, "scores": scores, "baselines": others}


def check_writable(out: Path) -> None:
    """InputError where a report cannot go to ``out``: said before the work, not after it."""
    if "{seed}" in str(out):
        raise InputError(f"out={out}: the seeds share one report, give a folder without {{seed}}")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"out={out} cannot be written, {there} is no folder or not yours: give another --out")


def write(out: Path, fitted: Probe, report: ProbeReport) -> None:
    """``probe.safetensors``, ``report.json``, ``row.md`` and ``figure.svg``: all of them, or what was there before."""
    texts = {REPORT: json.dumps(report, indent=1, allow_nan=False), ROW: report.row, FIGURE: figure(report)}
    try:
        with ExitStack() as stack:  # nothing is replaced before all are written
            partial = {name: stack.enter_context(replacing(out / name)) for name in (WEIGHTS, *texts)}
            save_file({name: value.contiguous() for name, value in fitted.state_dict().items()}, partial[WEIGHTS])
            for name, text in texts.items():
                partial[name].write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report to {out} ({error.strerror}): give another --out") from error
