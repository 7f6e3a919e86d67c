"""Score plans against recorded actions: the work of ``jepa plan`` under a protocol that needs no simulator."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data.clips import split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.data.transforms import resize
from jepa.errors import InputError
from jepa.evaluation import ActionReport, RecordedProtocol, recorded_pairs
from jepa.evaluation.recorded import blind_plans, errors
from jepa.evaluation.report import Latency
from jepa.planning import MPC, check_specs
from jepa.schema import Episodes, Sample
from jepa.tasks.judging import Trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Starts in recorded episodes, what a world may see of them, and what was done from there."""

    episodes: Episodes
    rows: Tensor  # int64 [n,2]: episode, frame
    block: int  # environment steps of a model step
    horizon: int  # H, model steps to the goal
    history: int  # frames of context, where the episode has so many
    size: tuple[int, int]  # height and width that frames are resized to, as in training

    def recorded(self) -> tuple[Tensor, Tensor]:
        """Raw model actions from the starts to the goals [n,H,A], and the environment actions [n,a] before them."""
        found = torch.stack([self._actions(row, -1, self.horizon * self.block) for row in self.rows.tolist()])
        return found[:, 1:].reshape(len(found), self.horizon, -1), found[:, 0]

    def frames(self) -> Tensor:
        """T, frames of context: int64 [n]."""
        return (1 + self.rows[:, 1] // self.block).clamp_max(self.history)

    def contexts(self, rows: Tensor) -> Sample:
        """What lies before some starts that have equally many frames of context, and their goals."""
        steps = int(self.frames()[rows[0]])
        return Sample.stack([self._context(row, steps) for row in self.rows[rows].tolist()])

    def _context(self, row: list[int], steps: int) -> Sample:
        offsets = np.append(np.arange(1 - steps, 1), self.horizon) * self.block
        columns = ("video", "proprio") if self.episodes.specs.observation.proprio_mean else ("video",)
        seen = self.episodes.read(row[0], row[1] + offsets, columns)
        seen = replace(seen, video=resize(seen.video, self.size))
        before, goal = seen.map(lambda part: part[:-1]), seen.map(lambda part: part[-1:])
        past = self._actions(row, (1 - steps) * self.block, 0).reshape(steps - 1, -1) if steps > 1 else None
        return replace(before, action=past, goal=goal)

    def _actions(self, row: list[int], first: int, end: int) -> Tensor:
        return self.episodes.read(row[0], row[1] + np.arange(first, end), ("action",)).action


def judge_recorded(
    policy: MPC, rules: RecordedProtocol, trial: Trial, name: str, settings: Mapping[str, Any]
) -> ActionReport:
    """Plan from held-out frames to later ones, compare with what was done between them, write report.json.

    Args:
        policy: whose plans are scored; every plan begins cold, from the recorded past
        rules: the protocol
        trial: the test; of its episodes the test part is drawn from
        name: of the policy in the table
        settings: how the policy was made, as plain values

    Raises:
        InputError: no episodes, too few of them, a world of other actions, a report of other pairs
    """
    earlier = None if trial.against is None else ActionReport.load(trial.against)
    pairs = _draw(policy, rules, trial)
    recorded, last = pairs.recorded()
    begun, skip = time.perf_counter(), len(policy.seconds["total"])
    plans = _plans(policy, pairs, trial.num)
    seconds, latency = time.perf_counter() - begun, _latency(policy, skip)
    space, told = policy.space, {name: plans}
    if trial.floors:
        told |= {f"floor {key}": value for key, value in blind_plans(recorded, space, rules.seed, last).items()}
    scores = {key: _values(errors(mine, recorded, space)) for key, mine in told.items()}
    report = ActionReport(
        policy=name,
        protocol=rules.to_dict(),
        frame_skip=pairs.block,
        episode=pairs.rows[:, 0].tolist(),
        start=pairs.rows[:, 1].tolist(),
        errors=scores.pop(name),
        floors={key.removeprefix("floor "): values for key, values in scores.items()},
        pairs_digest=_digest(pairs.rows, recorded),
        batch=min(trial.num, rules.pairs),
        latency=latency,
        alone=_alone(policy, pairs, trial.decisions),
        settings=dict(settings) | {"episodes": str(trial.episodes)},
        device=str(policy.device),
        seconds=seconds,
    )
    report.comparison = None if earlier is None else report.compare(earlier)
    report.save(trial.out / "report.json")
    log.info("wrote %s", trial.out / "report.json")
    return report


def _draw(policy: MPC, rules: RecordedProtocol, trial: Trial) -> Pairs:
    if trial.episodes is None:
        raise InputError(f"protocol {rules.name} compares plans with recorded episodes: name a dataset with --episodes")
    store, specs = Hdf5Episodes(trial.episodes), policy.world.specs
    seen = specs.observation
    resized = replace(store.specs.observation, height=seen.height, width=seen.width)
    check_specs(specs, replace(store.specs, observation=resized), trial.force)
    _, _, test = split(store, trial.parts, trial.split_seed)
    block = specs.action.block
    rows = recorded_pairs(store, rules, block, test)
    return Pairs(store, rows, block, rules.horizon, policy.history, (seen.height, seen.width))


def _plans(policy: MPC, pairs: Pairs, num: int) -> Tensor:
    """Raw plans [n,H,A], ``num`` at once where their contexts are equally long."""
    frames, found = pairs.frames(), torch.empty(len(pairs.rows), policy.horizon, policy.space.width)
    for steps in frames.unique():
        for rows in (frames == steps).nonzero()[:, 0].split(num):
            found[rows] = policy.plan(pairs.contexts(rows)).action
    return found


def _alone(policy: MPC, pairs: Pairs, decisions: int) -> Latency:
    """Of one pair at a time; the first decision is told apart."""
    skip = len(policy.seconds["total"])
    if not decisions:
        return Latency()
    for number in range(decisions + 1):
        policy.plan(pairs.contexts(torch.tensor([number % len(pairs.rows)])))
    return replace(_latency(policy, skip + 1), first_ms=1000 * policy.seconds["total"][skip])


def _latency(policy: MPC, skip: int) -> Latency:
    """Of all decisions but the first ``skip``."""
    stages = {stage: times[skip:] for stage, times in policy.seconds.items()}
    return Latency.of(stages.pop("total"), stages=stages)


def _values(scores: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Plain numbers, None where there is none."""
    return {name: [None if value != value else value for value in part.tolist()] for name, part in scores.items()}


def _digest(rows: Tensor, recorded: Tensor) -> str:
    both = rows.numpy().tobytes() + recorded.double().numpy().round(5).tobytes()
    return hashlib.sha256(both).hexdigest()[:16]
