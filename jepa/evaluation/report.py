"""What an evaluation found: one JSON file, one row of a table, and what two of them say about each other."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import jepa
from jepa.errors import InputError
from jepa.evaluation.statistics import bootstrap, mcnemar, paired_difference, wilson
from jepa.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Latency:
    """Milliseconds per decision.

    Attributes:
        first_ms: of the first decision of an episode, where it is told apart
        stages_ms: median of each stage of a decision, where the policy tells them
    """

    p50_ms: float | None = None
    p95_ms: float | None = None
    decisions: int = 0
    first_ms: float | None = None
    stages_ms: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        seconds: Sequence[float],
        first: float | None = None,
        stages: Mapping[str, Sequence[float]] | None = None,
    ) -> Latency:
        if not len(seconds):
            return cls()
        p50, p95 = np.quantile(np.asarray(seconds) * 1000, [0.5, 0.95])
        medians = {name: float(np.median(times)) * 1000 for name, times in (stages or {}).items()}
        return cls(float(p50), float(p95), len(seconds), None if first is None else first * 1000, medians)

    def trace(self) -> str:
        """The stages in one line; empty where the policy tells none."""
        return ", ".join(f"{name} {value:.1f}" for name, value in self.stages_ms.items())


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same pairs: rate of the first minus rate of the second, 95 % interval, exact McNemar p."""

    first: str
    second: str
    pairs: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.first} - {self.second}: {100 * self.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] "
            f"on {self.pairs} pairs; only one of them solved {self.only_first} and {self.only_second} "
            f"(exact McNemar p = {self.p_value:.3g})"
        )


@dataclass
class Report:
    """Outcomes of one policy under one protocol; everything else is computed from them.

    Attributes:
        policy: its name
        protocol: the entries of the protocol
        steps: per pair, the environment steps to the success that counts under the protocol; -1 if not solved
        reached: per pair, the environment steps until the goal was first reached: 0 at the start, -1 never; it differs
            from steps where the protocol judges the end of the budget
        pairs_digest: hash of the starts and goals
        latency: per call of the policy for a whole batch of ``batch`` environments
        alone: per decision of the policy that serves one environment
        floors: reports of the random and the do-nothing policy on the same pairs
        settings: how the policy was made, as plain values
        seconds: wall time
        comparison: with another report, if one was asked for
    """

    policy: str
    protocol: dict[str, Any]
    steps: list[int]
    pairs_digest: str
    batch: int = 1
    latency: Latency = Latency()
    alone: Latency = Latency()
    floors: dict[str, Report] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=lambda: versions())
    seconds: float = 0.0
    comparison: Comparison | None = None
    reached: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.reached:  # a report from before protocols judged anything but the first success
            self.reached = list(self.steps)

    @property
    def pairs(self) -> int:
        return len(self.steps)

    @property
    def successes(self) -> int:
        return sum(step >= 0 for step in self.steps)

    @property
    def rate(self) -> float:
        return self.successes / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson(self.successes, self.pairs)

    @property
    def solved_at_start(self) -> float:
        """Fraction of pairs that needed no step: an honest rate counts them in and says how many they are."""
        return sum(step == 0 for step in self.reached) / self.pairs

    @property
    def reached_rate(self) -> float:
        """Fraction of pairs whose goal was reached at any step, whether or not that counts."""
        return sum(step >= 0 for step in self.reached) / self.pairs

    @property
    def success_at(self) -> list[float]:
        """Entry k is the rate of success within k environment steps, up to the budget."""
        solved = np.array([step for step in self.steps if step >= 0], dtype=int)
        counts = np.bincount(solved, minlength=self.protocol["budget"] + 1)
        return (counts.cumsum() / self.pairs).tolist()

    @property
    def steps_to_success(self) -> float | None:
        """Mean over the solved pairs."""
        solved = [step for step in self.steps if step >= 0]
        return float(np.mean(solved)) if solved else None

    def to_dict(self) -> dict[str, Any]:
        """Facts and what follows from them, ready for JSON."""
        facts = asdict(self) | {"floors": {name: floor.to_dict() for name, floor in self.floors.items()}}
        low, high = self.interval
        derived = {
            "pairs": self.pairs,
            "successes": self.successes,
            "rate": self.rate,
            "interval": [low, high],
            "solved_at_start": self.solved_at_start,
            "reached_rate": self.reached_rate,
            "steps_to_success": self.steps_to_success,
            "steps_to_success_interval": bootstrap([step for step in self.steps if step >= 0]),
            "success_at": self.success_at,
        }
        return {"format": FORMAT, **derived, **facts}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        known = {item.name for item in fields(cls)}
        facts = {key: value for key, value in data.items() if key in known}
        facts |= {key: Latency(**facts[key]) for key in ("latency", "alone")}
        if facts.get("comparison") is not None:
            interval = tuple(facts["comparison"]["interval"])
            facts["comparison"] = Comparison(**facts["comparison"] | {"interval": interval})
        facts["floors"] = {name: cls.from_dict(floor) for name, floor in facts["floors"].items()}
        return cls(**facts)

    def save(self, path: Path | str) -> None:
        """Write JSON, whole or not at all."""
        write_json(self.to_dict(), path)

    @classmethod
    def load(cls, path: Path | str) -> Report:
        """Read what :meth:`save` wrote; InputError for anything else."""
        data = read_json(path)
        try:
            report = cls.from_dict(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a whole report ({error}); write it again with `jepa plan`") from error
        if not report.steps:
            raise InputError(f"{path} holds no pairs; write it again with `jepa plan`")
        return report

    def row(self) -> dict[str, str]:
        """Column -> text: one row of a table."""
        low, high = self.interval
        cells = {
            "policy": self.policy,
            "protocol": self.protocol["name"],
            "pairs": str(self.pairs),
            "success %": f"{100 * self.rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            "success@k %": self._curve(),
            "solved at start %": f"{100 * self.solved_at_start:.1f}",
            "steps": _number(self.steps_to_success, ".1f"),
            "ms p50 / p95": f"{_number(self.alone.p50_ms, '.1f')} / {_number(self.alone.p95_ms, '.1f')}",
        }
        for name in ("random", "idle"):
            cells[f"{name} %"] = f"{100 * self.floors[name].rate:.1f}" if name in self.floors else "-"
        return cells

    def _curve(self) -> str:
        """Success within a quarter, a half and all of the budget; only the last where the end is judged."""
        budget, rates = self.protocol["budget"], self.success_at
        at_end = self.protocol.get("judged") == "end"
        marks = [budget] if at_end else sorted({max(1, budget // 4), max(1, budget // 2), budget})
        return ", ".join(f"@{k} {100 * rates[k]:.1f}" for k in marks)

    def __str__(self) -> str:
        parts = [table([self])]
        if stages := self.alone.trace() or self.latency.trace():
            parts.append(f"median ms of the stages of a decision: {stages}")
        if self.comparison is not None:
            parts.append(str(self.comparison))
        return "\n\n".join(parts)


class Paired(Protocol):
    """What any report has: a row in a table of results, and pairs by which it is compared."""

    policy: str
    protocol: dict[str, Any]
    pairs_digest: str

    @property
    def pairs(self) -> int: ...

    def row(self) -> dict[str, str]: ...


def table(reports: Sequence[Paired]) -> str:
    """Reports as a Markdown table."""
    rows = [report.row() for report in reports]
    return grid([list(rows[0]), *(list(row.values()) for row in rows)])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def check_same(a: Paired, b: Paired, fact: tuple[str, Any, Any], advice: str) -> None:
    """InputError if two reports are not of the same pairs under the same protocol, or differ in another ``fact``: its
    name, that of the first and that of the second."""
    for what, mine, theirs in (
        ("protocol", a.protocol["name"], b.protocol["name"]),
        fact,
        ("number of pairs", a.pairs, b.pairs),
        ("pairs", a.pairs_digest, b.pairs_digest),
    ):
        if mine != theirs:
            raise InputError(f"{a.policy} and {b.policy} cannot be compared: {what} {mine} is not {theirs}; {advice}")


def compare(a: Report, b: Report) -> Comparison:
    """Paired comparison; InputError if the reports are not of the same pairs under the same protocol."""
    budgets = ("budget", a.protocol["budget"], b.protocol["budget"])
    check_same(a, b, budgets, "evaluate both with the same protocol, number of pairs and seed")
    outcomes = Counter((i >= 0, j >= 0) for i, j in zip(a.steps, b.steps))
    only_a, only_b = outcomes[True, False], outcomes[False, True]
    difference, low, high = paired_difference(outcomes[True, True], only_a, only_b, outcomes[False, False])
    return Comparison(a.policy, b.policy, a.pairs, only_a, only_b, difference, (low, high), mcnemar(only_a, only_b))


def write_json(data: Mapping[str, Any], path: Path | str) -> None:
    """Whole or not at all."""
    text = json.dumps(data, indent=1, allow_nan=False)
    write_atomically(Path(path), lambda file: file.write(text.encode()))


def read_json(path: Path | str) -> dict[str, Any]:
    """What a report wrote, of any kind; InputError for anything else."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"no report at {path}: {error}; write one with `jepa plan`") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is not a report of format {FORMAT}; write it again with `jepa plan`")
    return data


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def versions() -> dict[str, str]:
    """What the numbers of a report were made with."""
    return {
        "jepa": jepa.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores",
    }
