"""The verb ``jepa plan``: judge latent planning under a named protocol and write down what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jepa.errors import InputError
from jepa.evaluation import EvaluationProtocol, Report, compare, find_protocol, table
from jepa.planning import MPC, Cost, check_history
from jepa.schema import Planner, Proposal, World
from jepa.tasks.judging import describe, judge


def plan(
    world: World,
    planner: Planner,
    cost: Cost,
    out: Path,
    horizon: int,
    protocol: str | None = None,
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
    proposal: Proposal | None = None,
    force: bool = False,
) -> Report:
    """Evaluate planning in the latent space of a world model; write report.json and trajectories.npz.

    Args:
        world: what forecasts, e.g. class_path jepa.checkpoints.load with init_args path
        planner: what searches, e.g. jepa.planning.CEM
        cost: what makes a forecast good, e.g. jepa.planning.GoalLatent
        out: folder of the report
        horizon: model steps that a plan looks ahead
        protocol: name of the evaluation protocol, e.g. two_rooms/v1; by default the one that the world was trained for
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
        proposal: guesses plans for the planner to start from
        force: show how world, environment and command disagree, and go on

    Raises:
        InputError: unknown protocol, an open-loop protocol that the plan does not cover, more history than in training,
            world of another environment, episodes missing, a report of other pairs
    """
    check_history(world.specs, history, force)
    rules = find_protocol(protocol or world.specs.evaluation.protocol)
    _check_cover(rules, execute * world.specs.action.block)
    policy = MPC(world, planner, cost, horizon, execute, history, chunk, device, seed, proposal)
    title = name or f"{type(world).__name__}, {type(planner).__name__}"
    trial = (pairs, num, episodes, parts, split_seed, against, floors, decisions, force)
    return judge(policy, world.specs, rules.name, out, title, _settings(policy), *trial)


def _check_cover(rules: EvaluationProtocol, steps: int) -> None:
    if rules.open_loop and steps < rules.budget:
        raise InputError(
            f"protocol {rules.name} is one plan of {rules.budget} environment steps, acted out blindly; execute and "
            f"the frame skip make {steps}: raise horizon and execute"
        )


def plan_compare(first: Path, second: Path) -> str:
    """The paired test of two reports on the same pairs: exact McNemar and the interval of the difference.

    Args:
        first: report.json of ``jepa plan`` or ``jepa act``, or its folder
        second: another of the same protocol and pairs

    Raises:
        InputError: no report there, or reports of other protocols or pairs
    """
    paths = [path / "report.json" if path.is_dir() else path for path in (first, second)]
    reports = [Report.load(path) for path in paths]
    if reports[0].policy == reports[1].policy:
        for report, path in zip(reports, paths):
            report.policy = f"{report.policy} ({path})"
    return f"{table(reports)}\n\n{compare(*reports)}"


def _settings(policy: MPC) -> dict[str, Any]:
    """How the policy was made, as plain values."""
    names = ("horizon", "execute", "history", "chunk", "seed")
    parts = {"planner": describe(policy.planner), "cost": describe(policy.cost), "proposal": describe(policy.proposal)}
    return parts | {name: getattr(policy, name) for name in names} | {"specs": describe(policy.world.specs)}
