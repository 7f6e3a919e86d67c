"""Judge a policy in its environment under a named protocol: what the verbs that act have in common."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa.data.clips import split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.envs import make
from jepa.errors import InputError
from jepa.evaluation import EvaluationProtocol, Report, Trajectories, compare, episode_pairs, evaluate, find_protocol
from jepa.planning import check_specs
from jepa.schema import Policy, Specs, Task

log = logging.getLogger(__name__)


def judge(
    policy: Policy,
    specs: Specs,
    protocol: str,
    out: Path,
    name: str,
    settings: Mapping[str, Any],
    pairs: int | None = None,
    num: int = 50,
    episodes: Path | None = None,
    parts: tuple[float, float, float] = (0.9, 0.05, 0.05),
    split_seed: int = 0,
    against: Path | None = None,
    floors: bool = True,
    decisions: int = 20,
    force: bool = False,
) -> Report:
    """Evaluate a policy; write report.json and trajectories.npz.

    Args:
        policy: what is judged
        specs: of the world that it sees through
        protocol: name of the evaluation protocol
        out: folder of the report
        name: of the policy in the table
        settings: how the policy was made, as plain values
        pairs: judge only the first so many pairs of the protocol
        num: environments at once
        episodes: dataset whose test episodes give starts and goals, for the protocols that want them
        parts: train, validation and test parts of the episodes, as they were in training
        split_seed: of that split, as it was in training
        against: an earlier report.json of the same pairs; the paired comparison joins this report
        floors: judge a random and a do-nothing policy on the same pairs too
        decisions: how many decisions of one environment alone are timed; 0 for none
        force: show how world and environment disagree, and go on

    Raises:
        InputError: unknown protocol, world of another environment, episodes missing, a report of other pairs
    """
    rules = find_protocol(protocol)
    rules = rules if pairs is None else rules.with_pairs(pairs)
    earlier = None if against is None else Report.load(against)
    size = specs.observation.height
    task = make(rules.env, num=min(num, rules.pairs), size=size, **rules.env_options)
    seen = Trajectories()
    try:
        check_specs(specs, task.specs, force)
        starts, goals = _pairs(rules, task, episodes, parts, split_seed)
        report = evaluate(policy, task, rules, starts, goals, floors, decisions, name, seen)
    finally:
        task.close()
    report.settings = dict(settings) | {"num": task.num, "episodes": None if episodes is None else str(episodes)}
    report.comparison = None if earlier is None else compare(report, earlier)
    seen.save(out / "trajectories.npz")
    report.save(out / "report.json")
    log.info("wrote %s", out / "report.json")
    return report


def _pairs(
    rules: EvaluationProtocol, task: Task, episodes: Path | None, parts: tuple[float, float, float], split_seed: int
) -> tuple[Tensor | None, Tensor | None]:
    """Starts and goals from the test episodes, or None where the environment draws them."""
    if (rules.goals == "episodes") != (episodes is not None):
        needs = "needs a dataset for its starts and goals" if episodes is None else "draws its own starts and goals"
        raise InputError(
            f"protocol {rules.name} {needs}, was given episodes={episodes}; "
            f"{'name one' if episodes is None else 'leave it out'}"
        )
    if episodes is None:
        return None, None
    store = Hdf5Episodes(episodes)
    _, _, test = split(store, parts, split_seed)
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
