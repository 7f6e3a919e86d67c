"""Plans against recorded actions: a score where no simulator exists, beside plans of policies that know nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.evaluation.diagnostics import Estimate, action_errors, estimate, random_plans
from jepa.evaluation.report import FORMAT, Latency, check_same, grid, read_json, table, versions, write_json
from jepa.schema import ActionSpec, plain

SCORES = ("first", "plan", "sum")
Values = list[Any]  # per pair: a number, None where there is none; or a number for each dimension


def errors(planned: Tensor, recorded: Tensor, space: ActionSpec) -> dict[str, Tensor]:
    """How far plans [n,H',A] are from the recorded actions [n,H,A]; both in raw units.

    Of absolute errors in units of the standard deviation, the mean over dimensions, each [n]: ``first``, of the first
    action; ``plan``, over all H; ``sum``, of their sum, since many orders of the same moves lead to one goal. With
    ``_raw`` at the end: the same in raw units for every dimension of an environment action, [n,a]. ``first_cosine``,
    ``sum_cosine``: of the angle between the two, NaN where one of them is the mean action. What is not the first is
    left out where plans are shorter than H; the sum, where H is one.

    The angles of poses are added as numbers, which is what they are for small turns.
    """
    steps = recorded.shape[1]
    whole = planned.shape[1] >= steps
    planned, recorded = (part[:, : steps if whole else 1] for part in (planned, recorded))
    told = action_errors(planned, recorded, space)
    each = (planned - recorded).unflatten(-1, (space.block, space.env_width))  # [n,H,k,a]
    found = {name: told[name] for name in ("first", "first_cosine")} | {"first_raw": each[:, 0].abs().mean(1)}
    if whole:
        found["plan"] = (space.normalise(planned) - space.normalise(recorded)).abs().mean((1, 2))
        found["plan_raw"] = each.abs().mean((1, 2))
    if whole and steps > 1:
        found |= {"sum": told["mean"] * steps * space.block, "sum_cosine": told["mean_cosine"]}
        found["sum_raw"] = each.sum((1, 2)).abs()
    return found


def blind_plans(recorded: Tensor, space: ActionSpec, seed: int, last: Tensor | None = None) -> dict[str, Tensor]:
    """Floors, each [n,H,A] raw as ``recorded`` is: the mean action, a random one, and the one before the start again.

    Args:
        recorded: the recorded plans
        space: of model actions
        seed: of the random plans
        last: environment actions [n,a] before the starts; without them the last floor is left out
    """
    found = {
        "mean_action": space.denormalise(torch.zeros_like(recorded)),
        "random": random_plans(space, tuple(recorded.shape[:2]), seed),
    }
    if last is not None:
        found["repeat_last"] = last.repeat(1, space.block).unsqueeze(1).expand_as(recorded)
    return found


def known(values: Tensor, episode: Tensor) -> Estimate | None:
    """Over the rows of ``values [n]``, which are of these episodes [n], that have a value."""
    rows = values.isfinite()
    return estimate(values[rows], episode[rows]) if rows.any() else None


@dataclass(frozen=True)
class ActionComparison:
    """Two policies on the same pairs: errors of the first minus errors of the second, over episodes."""

    first: str
    second: str
    pairs: int
    differences: Mapping[str, Estimate]

    def __str__(self) -> str:
        told = self.differences.items()
        parts = [f"{name} {part.value:+.3f} [{part.low:+.3f}, {part.high:+.3f}]" for name, part in told]
        return f"{self.first} - {self.second}, errors on {self.pairs} pairs: {', '.join(parts)}"


@dataclass
class ActionReport:
    """Errors of one policy's plans under a protocol over recorded episodes; everything else follows from them.

    Attributes:
        policy: its name
        protocol: the entries of the protocol
        frame_skip: environment steps of a model step
        episode: per pair, the number of its episode
        start: per pair, the frame of the start
        errors: what :func:`errors` says of every pair
        floors: the same of plans that know nothing
        pairs_digest: hash of the starts and the recorded actions
        latency: per call for a batch of ``batch`` pairs
        alone: per decision for one pair
        settings: how the policy was made, as plain values
        seconds: wall time
        comparison: with another report, if one was asked for
    """

    policy: str
    protocol: dict[str, Any]
    frame_skip: int
    episode: list[int]
    start: list[int]
    errors: dict[str, Values]
    floors: dict[str, dict[str, Values]]
    pairs_digest: str
    batch: int = 1
    latency: Latency = Latency()
    alone: Latency = Latency()
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=versions)
    seconds: float = 0.0
    comparison: ActionComparison | None = None

    @property
    def pairs(self) -> int:
        return len(self.episode)

    def estimates(self, floor: str | None = None) -> dict[str, Any]:
        """Name of an error -> its :class:`Estimate`, a list of them for the dimensions; of the policy or of a floor."""
        found, episode = {}, torch.tensor(self.episode)
        for name, values in (self.errors if floor is None else self.floors[floor]).items():
            column = torch.tensor([torch.nan if value is None else value for value in values], dtype=torch.float64)
            found[name] = known(column, episode) if column.ndim == 1 else [known(one, episode) for one in column.T]
        return found

    def compare(self, other: ActionReport) -> ActionComparison:
        """Paired; InputError if the other is not of the same pairs under the same protocol."""
        skips = ("frame skip", self.frame_skip, other.frame_skip)
        check_same(self, other, skips, "score both on the same episodes, with the same number of pairs")
        shared = [name for name in SCORES if name in self.errors and name in other.errors]
        mine, theirs = (torch.tensor([one.errors[name] for name in shared]).double() for one in (self, other))
        episode = torch.tensor(self.episode)
        parts = {name: estimate(values, episode) for name, values in zip(shared, mine - theirs)}
        return ActionComparison(self.policy, other.policy, self.pairs, parts)

    def to_dict(self) -> dict[str, Any]:
        """Facts and what follows from them, ready for JSON."""
        estimates = {"policy": self.estimates()} | {name: self.estimates(name) for name in self.floors}
        derived = {"pairs": self.pairs, "episodes": len(set(self.episode)), "estimates": plain(estimates)}
        return {"format": FORMAT, **derived, **asdict(self)}

    def save(self, path: Path | str) -> None:
        """Write JSON, whole or not at all."""
        write_json(self.to_dict(), path)

    @classmethod
    def load(cls, path: Path | str) -> ActionReport:
        """Read what :meth:`save` wrote; InputError for anything else."""
        data = read_json(path)
        if not is_action_report(data):
            raise InputError(
                f"{path} reports success in an environment, not errors against recorded actions; name a report of the "
                "same protocol"
            )
        try:
            facts = {item.name: data[item.name] for item in fields(cls)}
            facts |= {name: Latency(**facts[name]) for name in ("latency", "alone")}
            if (told := facts["comparison"]) is not None:
                parts = {name: Estimate(**part) for name, part in told["differences"].items()}
                facts["comparison"] = ActionComparison(**told | {"differences": parts})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a whole report ({error}); write it again with `jepa plan`") from error
        return cls(**facts)

    def row(self) -> dict[str, str]:
        """Column -> text: one row of a table. Errors are in standard deviations of the actions."""
        mine = self.estimates()
        cells = {
            "policy": self.policy,
            "protocol": self.protocol["name"],
            "pairs": f"{self.pairs} of {len(set(self.episode))} episodes",
            **{f"error, {name}": str(mine[name]) if name in mine else "-" for name in SCORES},
        }
        for floor in ("mean_action", "random", "repeat_last"):
            theirs = self.estimates(floor) if floor in self.floors else {}
            each = [f"{theirs[name].value:.3f}" for name in SCORES if name in theirs]
            cells[floor.replace("_", " ")] = " / ".join(each) or "-"
        p50, p95 = (f"{value:.1f}" if value is not None else "-" for value in (self.alone.p50_ms, self.alone.p95_ms))
        return cells | {"ms p50 / p95": f"{p50} / {p95}"}

    def __str__(self) -> str:
        parts = [table([self]), grid(self._dimensions())]
        if stages := self.alone.trace() or self.latency.trace():
            parts.append(f"median ms of the stages of a decision: {stages}")
        if self.comparison is not None:
            parts.append(str(self.comparison))
        return "\n\n".join(parts)

    def _dimensions(self) -> list[list[str]]:
        """Rows of a table: absolute errors of each dimension in raw units, of the policy and of its floors."""
        rows = [["raw error of dimension", *map(str, range(len(self.errors["first_raw"][0])))]]
        for title in (None, *self.floors):
            found = self.estimates(title)
            for name in (name for name in SCORES if f"{name}_raw" in found):
                values = [f"{one.value:.4g}" for one in found[f"{name}_raw"]]
                rows.append([f"{(title or self.policy).replace('_', ' ')}, {name}", *values])
        return rows


def is_action_report(data: Mapping[str, Any]) -> bool:
    """Whether a report's JSON was written by :meth:`ActionReport.save`."""
    return "errors" in data
