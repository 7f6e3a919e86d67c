"""The verb ``jepa plan``: judge latent planning under a named protocol and write down what happened."""

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
from jepa.planning import MPC, Cost, check_specs
from jepa.schema import Planner, Task, World

log = logging.getLogger(__name__)


def plan(
    world: World,
    planner: Planner,
    cost: Cost,
    protocol: str,
    out: Path,
    horizon: int,
    execute: int = 1,
    history: int | None = None,
    chunk: int | None = None,
    pairs: int | None = None,
    num: int = 50,
    episodes: Path | None = None,
    parts: tuple[float, float, float] = (0.9, 0.05, 0.05),
    split_seed: int = 0,
    against: Path | None = None,
    floors: bool = True,
    decisions: int = 20,
    name: str = "",
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    """Evaluate planning in the latent space of a world model; write report.json and trajectories.npz.

    Args:
        world: what forecasts, e.g. class_path jepa.checkpoints.load with init_args path
        planner: what searches, e.g. jepa.planning.CEM
        cost: what makes a forecast good, e.g. jepa.planning.GoalLatent
        protocol: name of the evaluation protocol, e.g. two_rooms/v1
        out: folder of the report
        horizon: model steps that a plan looks ahead
        execute: model steps of a plan that are executed before the next plan
        history: frames of context in model steps; by default those that the world was trained to start from
        chunk: candidates per environment in one rollout, to bound the memory; all by default
        pairs: judge only the first so many pairs of the protocol
        num: environments at once
        episodes: dataset whose test episodes give starts and goals, for the protocols that want them
        parts: train, validation and test parts of the episodes, as they were in training
        split_seed: of that split, as it was in training
        against: an earlier report.json of the same pairs; the paired comparison joins this report
        floors: judge a random and a do-nothing policy on the same pairs too
        decisions: how many decisions of one environment alone are timed; 0 for none
        name: of this policy in the table; by default world and planner
        seed: of the planner's noise
        device: where the world runs, e.g. cuda

    Raises:
        InputError: unknown protocol, world of another environment, episodes missing, a report of other pairs
    """
    rules = find_protocol(protocol)
    rules = rules if pairs is None else rules.with_pairs(pairs)
    earlier = None if against is None else Report.load(against)
    policy = MPC(world, planner, cost, horizon, execute, history, chunk, device, seed)
    size = world.specs.observation.height
    task = make(rules.env, num=min(num, rules.pairs), size=size, **rules.env_options)
    seen = Trajectories()
    try:
        check_specs(world.specs, task.specs)
        starts, goals = _pairs(rules, task, episodes, parts, split_seed)
        title = name or f"{type(world).__name__}, {type(planner).__name__}"
        report = evaluate(policy, task, rules, starts, goals, floors, decisions, title, seen)
    finally:
        task.close()
    report.settings = _settings(policy) | {"num": task.num, "episodes": None if episodes is None else str(episodes)}
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


def _settings(policy: MPC) -> dict[str, Any]:
    """How the policy was made, as plain values."""
    names = ("horizon", "execute", "history", "chunk", "seed")
    parts = {"planner": _describe(policy.planner), "cost": _describe(policy.cost)}
    return parts | {name: getattr(policy, name) for name in names} | {"specs": _describe(policy.world.specs)}


def _describe(part: Any) -> Any:
    """Class name and public attributes, down to plain values."""
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)  # JSON has no infinity
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, (list, tuple)):
        return [_describe(item) for item in part]
    if isinstance(part, Mapping):
        return {str(key): _describe(value) for key, value in part.items()}
    public = {key: _describe(value) for key, value in vars(part).items() if not key.startswith("_")}
    return {"class": type(part).__name__, **public}
