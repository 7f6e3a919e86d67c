"""Judge a policy in its environment under a named protocol: what the verbs that act have in common."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa.data.clips import split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.envs import make
from jepa.errors import InputError
from jepa.evaluation import (
    EvaluationProtocol,
    RecordedProtocol,
    Report,
    Trajectories,
    compare,
    episode_pairs,
    evaluate,
    find_protocol,
)
from jepa.planning import check_specs
from jepa.schema import Policy, Specs, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """How a policy is put to the test: what every verb that acts is asked beside its policy.

    Args:
        protocol: name of the evaluation protocol
        out: folder of the report
        pairs: judge only the first so many pairs of the protocol
        num: environments at once
        episodes: dataset whose test episodes give starts and goals, for the protocols that want them
        parts: train, validation and test parts of the episodes, as they were in training
        split_seed: of that split, as it was in training
        against: an earlier report.json of the same pairs; the paired comparison joins this report
        floors: judge policies that know nothing on the same pairs too
        decisions: how many decisions of one environment alone are timed; 0 for none
        force: show how world and environment disagree, and go on
    """

    protocol: str
    out: Path
    pairs: int | None = None
    num: int = 50
    episodes: Path | None = None
    parts: tuple[float, float, float] = (0.9, 0.05, 0.05)
    split_seed: int = 0
    against: Path | None = None
    floors: bool = True
    decisions: int = 20
    force: bool = False

    @property
    def rules(self) -> EvaluationProtocol | RecordedProtocol:
        """The protocol itself, on as many pairs as are asked for."""
        rules = find_protocol(self.protocol)
        return rules if self.pairs is None else rules.with_pairs(self.pairs)


def judge(policy: Policy, specs: Specs, trial: Trial, name: str, settings: Mapping[str, Any]) -> Report:
    """Evaluate a policy; write report.json and trajectories.npz.

    Args:
        policy: what is judged
        specs: of the world that it sees through
        trial: the test
        name: of the policy in the table
        settings: how the policy was made, as plain values

    Raises:
        InputError: unknown protocol, world of another environment, episodes missing, a report of other pairs
    """
    rules = trial.rules
    if isinstance(rules, RecordedProtocol):
        raise InputError(f"protocol {rules.name} scores plans, which {name} does not make: use it with jepa plan")
    earlier = None if trial.against is None else Report.load(trial.against)
    size = specs.observation.height
    task = make(rules.env, num=min(trial.num, rules.pairs), size=size, **rules.env_options)
    seen = Trajectories()
    try:
        check_specs(specs, task.specs, trial.force)
        starts, goals = _pairs(rules, task, trial)
        report = evaluate(policy, task, rules, starts, goals, trial.floors, trial.decisions, name, seen)
    finally:
        task.close()
    report.settings = dict(settings) | {"num": task.num, "episodes": trial.episodes and str(trial.episodes)}
    report.comparison = None if earlier is None else compare(report, earlier)
    seen.save(trial.out / "trajectories.npz")
    report.save(trial.out / "report.json")
    log.info("wrote %s", trial.out / "report.json")
    return report


def _pairs(rules: EvaluationProtocol, task: Task, trial: Trial) -> tuple[Tensor | None, Tensor | None]:
    """Starts and goals from the test episodes, or None where the environment draws them."""
    episodes = trial.episodes
    if (rules.goals == "episodes") != (episodes is not None):
        needs = "needs a dataset for its starts and goals" if episodes is None else "draws its own starts and goals"
        raise InputError(
            f"protocol {rules.name} {needs}, was given episodes={episodes}; "
            f"{'name one' if episodes is None else 'leave it out'}"
        )
    if episodes is None:
        return None, None
    store = Hdf5Episodes(episodes)
    _, _, test = split(store, trial.parts, trial.split_seed)
    return episode_pairs(store, rules, task.success, test)


def describe(part: Any) -> Any:
    """Class name and public attributes, down to plain values."""
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)  # JSON has no infinity
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, (list, tuple)):
        return [describe(item) for item in part]
    if isinstance(part, Mapping):
        return {str(key): describe(value) for key, value in part.items()}
    public = {key: describe(value) for key, value in vars(part).items() if not key.startswith("_")}
    return {"class": type(part).__name__, **public}
