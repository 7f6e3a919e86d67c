"""The verb ``jepa plan``: judge latent planning under a named protocol and write down what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jepa.errors import InputError
from jepa.evaluation import ActionReport, EvaluationProtocol, RecordedProtocol, Report, compare, table
from jepa.evaluation.recorded import is_action_report
from jepa.evaluation.report import read_json
from jepa.planning import MPC, Cost, check_history
from jepa.schema import Planner, Proposal, World
from jepa.tasks.judging import Trial, describe, judge
from jepa.tasks.recorded import judge_recorded


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
) -> Report | ActionReport:
    """Evaluate planning in the latent space of a world model; write report.json and trajectories.npz.

    Under a protocol over recorded episodes (recorded/...) no environment is needed: plans are compared with the
    recorded actions, and there are no trajectories.

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
    protocol = protocol or world.specs.evaluation.protocol
    trial = Trial(protocol, out, pairs, num, episodes, parts, split_seed, against, floors, decisions, force)
    check_history(world.specs, history, force)
    rules = trial.rules
    if isinstance(rules, EvaluationProtocol):
        _check_cover(rules, execute * world.specs.action.block)
    policy = MPC(world, planner, cost, horizon, execute, history, chunk, device, seed, proposal)
    title = name or f"{type(world).__name__}, {type(planner).__name__}"
    if isinstance(rules, RecordedProtocol):
        return judge_recorded(policy, rules, trial, title, _settings(policy))
    return judge(policy, world.specs, trial, title, _settings(policy))


def _check_cover(rules: EvaluationProtocol, steps: int) -> None:
    if rules.open_loop and steps < rules.budget:
        raise InputError(
            f"protocol {rules.name} is one plan of {rules.budget} environment steps, acted out blindly; execute and "
            f"the frame skip make {steps}: raise horizon and execute"
        )


def plan_compare(first: Path, second: Path) -> str:
    """The paired test of two reports on the same pairs: exact McNemar and the interval of the difference.

    Of two reports of plans against recorded actions: the intervals of the differences of their errors.

    Args:
        first: report.json of ``jepa plan`` or ``jepa act``, or its folder
        second: another of the same protocol and pairs

    Raises:
        InputError: no report there, or reports of other protocols or pairs
    """
    paths = [path / "report.json" if path.is_dir() else path for path in (first, second)]
    reports = [_load(path) for path in paths]
    if reports[0].policy == reports[1].policy:
        for report, path in zip(reports, paths):
            report.policy = f"{report.policy} ({path})"
    one, other = reports
    if isinstance(one, ActionReport) != isinstance(other, ActionReport):
        raise InputError(
            f"{paths[0]} and {paths[1]} cannot be compared: one tells success in an environment, the other errors "
            "against recorded actions; name two reports of one protocol"
        )
    told = one.compare(other) if isinstance(one, ActionReport) else compare(one, other)
    return f"{table(reports)}\n\n{told}"


def _load(path: Path) -> Report | ActionReport:
    return ActionReport.load(path) if is_action_report(read_json(path)) else Report.load(path)


def _settings(policy: MPC) -> dict[str, Any]:
    """How the policy was made, as plain values."""
    names = ("horizon", "execute", "history", "chunk", "seed")
    parts = {"planner": describe(policy.planner), "cost": describe(policy.cost), "proposal": describe(policy.proposal)}
    return parts | {name: getattr(policy, name) for name in names} | {"specs": describe(policy.world.specs)}
