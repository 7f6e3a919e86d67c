"""Run a policy through a protocol: the same pairs, the same budget and the same floors for everyone."""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from jepa.errors import InputError
from jepa.evaluation.floors import IdlePolicy, RandomPolicy
from jepa.evaluation.protocols import EvaluationProtocol
from jepa.evaluation.report import Latency, Report
from jepa.files import write_atomically
from jepa.schema import Policy, Sample, Task

log = logging.getLogger(__name__)


class Trajectories:
    """What happened, for drawing: states, actions and the first and goal frames of every pair.

    ``save`` writes an npz with ``state [P,T+1,X]``, ``action [P,T,a]``, ``goal [P,X]``, ``steps [P]`` (-1: not
    solved), ``frame`` and ``goal_frame [P,C,H,W]``. Rows after the end of a pair are NaN.
    """

    def __init__(self) -> None:
        self.columns: dict[str, list[np.ndarray]] = {}

    def add(self, **columns: Tensor) -> None:
        """Append the pairs of one batch."""
        for name, value in columns.items():
            self.columns.setdefault(name, []).append(value.cpu().numpy())

    def save(self, path: Path) -> None:
        arrays = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def evaluate(
    policy: Policy,
    task: Task,
    protocol: EvaluationProtocol,
    states: Tensor | None = None,
    goals: Tensor | None = None,
    floors: bool = True,
    decisions: int = 20,
    name: str = "",
    trajectories: Trajectories | None = None,
    progress: bool = True,
) -> Report:
    """Success of ``policy`` on the pairs of ``protocol``, ``task.num`` pairs at once.

    Where the protocol stops a pair at its first success, the pair costs nothing more: policies whose ``act`` takes
    ``active [B]`` are told which environments still matter.

    Args:
        policy: what is judged
        task: the environments
        protocol: pairs, budget, seed
        states: privileged starts [pairs,X], for protocols with goals from episodes
        goals: privileged goals [pairs,X], likewise
        floors: judge a random and a do-nothing policy on the same pairs too
        decisions: how many decisions to time for one environment alone, after the first; 0 for none
        name: of the policy, in the table; the name of its class by default
        trajectories: collects what the policy did
        progress: show a bar on stderr

    Raises:
        InputError: the protocol wants goals from episodes and none were given, or their number is another
    """
    _check_pairs(protocol, states, goals)
    report = _judge(policy, task, protocol, states, goals, name or type(policy).__name__, trajectories, progress)
    if decisions:
        report.alone = latency(policy, _reset(task, protocol, 0, 1, states, goals), decisions)
    if floors:
        for title, floor in (("random", RandomPolicy(task.specs.action, protocol.seed)), ("idle", IdlePolicy(task))):
            report.floors[title] = _judge(floor, task, protocol, states, goals, title, None, progress)
            assert report.floors[title].pairs_digest == report.pairs_digest, "the task drew other pairs for a floor"
    return report


def _check_pairs(protocol: EvaluationProtocol, states: Tensor | None, goals: Tensor | None) -> None:
    given = [None if x is None else len(x) for x in (states, goals)]
    if protocol.goals == "episodes" and given != [protocol.pairs] * 2:
        raise InputError(
            f"protocol {protocol.name} needs {protocol.pairs} starts and goals from held-out episodes, was given "
            f"{given[0]} and {given[1]}; name the episodes that they come from"
        )
    if protocol.goals == "environment" and given != [None, None]:
        raise InputError(
            f"protocol {protocol.name} lets the environment draw starts and goals, but states were given: leave them "
            "out, or choose a protocol with goals from episodes"
        )


def _judge(
    policy: Policy,
    task: Task,
    protocol: EvaluationProtocol,
    states: Tensor | None,
    goals: Tensor | None,
    name: str,
    trajectories: Trajectories | None,
    progress: bool,
) -> Report:
    watch = _Watch(policy)
    digest, solved, reached, begun = hashlib.sha256(), [], [], time.perf_counter()
    with _bar(progress) as bar:
        row = bar.add_task(name, total=protocol.pairs)
        for first, count in _batches(protocol.pairs, task.num):
            sample = _reset(task, protocol, first, count, states, goals)
            digest.update(_pair_bytes(sample, count))
            run = _Run(sample, count, protocol, trajectories is not None)
            run.play(policy, task, watch)
            solved.append(run.solved[:count])
            reached.append(run.reached[:count])
            if trajectories is not None:
                trajectories.add(**run.record())
            bar.advance(row, count)
    report = Report(
        policy=name,
        protocol=protocol.to_dict(),
        steps=torch.cat(solved).tolist(),
        reached=torch.cat(reached).tolist(),
        pairs_digest=digest.hexdigest()[:16],
        batch=task.num,
        latency=watch.latency(),
        device=str(getattr(policy, "device", "cpu")),
        seconds=time.perf_counter() - begun,
    )
    log.info("%s: %d of %d pairs solved", name, report.successes, report.pairs)
    return report


class _Run:
    """One batch of episodes, from the reset to the end of the budget."""

    def __init__(self, sample: Sample, count: int, rules: EvaluationProtocol, record: bool) -> None:
        self.sample, self.count, self.rules, self.budget = sample, count, rules, rules.budget
        self.active = torch.arange(len(sample.video)) < count  # the rest fills up the batch
        self.reached = torch.full((len(sample.video),), -1)  # environment steps until the goal is first reached
        self.at_goal = torch.zeros_like(self.active)  # now, or where the pair stopped
        self.first, self.states, self.actions = sample, [sample.state[:, -1].clone()], []
        self.recording = record

    @property
    def solved(self) -> Tensor:
        """Environment steps to the success that counts [B]; -1 where there is none."""
        if self.rules.judged == "any":
            return self.reached
        return torch.where(self.at_goal, self.budget, -1)

    def play(self, policy: Policy, task: Task, watch: _Watch) -> None:
        policy.reset(torch.ones(len(self.active), dtype=torch.bool))
        self._mark(0, task.success(self.sample.state[:, -1], self.sample.goal.state[:, -1]))
        for step in range(1, self.budget + 1):
            if not self.active.any():
                return
            action = watch.act(self.first if self.rules.open_loop else self.sample, self.active)
            outcome = task.step(action)
            self.sample = outcome.sample
            if self.recording:
                self._write(action)
            self._mark(step, outcome.success)
            self.active &= ~outcome.terminated.cpu()

    def _mark(self, step: int, success: Tensor) -> None:
        now = success.cpu() & self.active
        self.reached[now & (self.reached < 0)] = step
        self.at_goal[self.active] = now[self.active]
        if self.rules.stops:
            self.active &= ~now

    def _write(self, action: Tensor) -> None:
        gone = ~self.active[:, None]
        self.actions.append(action.cpu().float().masked_fill(gone, torch.nan))
        self.states.append(self.sample.state[:, -1].float().masked_fill(gone, torch.nan))

    def record(self) -> dict[str, Tensor]:
        missing = self.budget - len(self.actions)
        width = self.actions[0].shape[1] if self.actions else 0
        states, actions = torch.stack(self.states, 1), torch.zeros(len(self.active), 0, width)
        if self.actions:
            actions = torch.stack(self.actions, 1)
        pad = {"mode": "constant", "value": torch.nan}
        columns = {
            "state": torch.nn.functional.pad(states, (0, 0, 0, missing), **pad),
            "action": torch.nn.functional.pad(actions, (0, 0, 0, missing), **pad),
            "goal": self.first.goal.state[:, -1],
            "steps": self.solved,
            "frame": self.first.video[:, -1],
            "goal_frame": self.first.goal.video[:, -1],
        }
        return {name: value[: self.count] for name, value in columns.items()}


class _Watch:
    """Calls a policy and times its decisions: its own list ``seconds["total"]`` if it keeps one, every call if not."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.told = "active" in inspect.signature(policy.act).parameters
        self.own = getattr(policy, "seconds", None)
        self.skip = len(self.own["total"]) if self.own else 0
        self.calls: list[float] = []

    def act(self, sample: Sample, active: Tensor) -> Tensor:
        start = time.perf_counter()
        action = self.policy.act(sample, active=active) if self.told else self.policy.act(sample)
        self.calls.append(time.perf_counter() - start)
        return action

    def times(self) -> list[float]:
        return self.own["total"][self.skip :] if self.own else self.calls

    def latency(self, first: float | None = None, skip: int = 0) -> Latency:
        """Of what was timed since the beginning, without the first ``skip`` decisions; stages where they are told."""
        stages = {name: times[self.skip + skip :] for name, times in (self.own or {}).items() if name != "total"}
        return Latency.of(self.times()[skip:], first, stages)


def latency(policy: Policy, sample: Sample, decisions: int = 20, calls: int = 2000) -> Latency:
    """Milliseconds per decision of a policy that serves one environment alone.

    The first decision of an episode has no warm start and is reported apart, as ``first_ms``.

    Args:
        policy: it is reset
        sample: the present of any environments; the first is used, and it does not move
        decisions: how many to time after the first
        calls: at most so many calls of ``act``, whatever number of decisions they made
    """
    one = sample.map(lambda tensor: tensor[:1])
    policy.reset(torch.ones(1, dtype=torch.bool))
    watch = _Watch(policy)
    active = torch.ones(1, dtype=torch.bool)
    for _ in range(calls):
        watch.act(one, active)
        if len(watch.times()) > decisions:
            break
    times = watch.times()
    return watch.latency(first=times[0], skip=1)


def _batches(pairs: int, num: int) -> Iterator[tuple[int, int]]:
    """First pair and number of pairs of every batch."""
    for first in range(0, pairs, num):
        yield first, min(num, pairs - first)


def _reset(
    task: Task, protocol: EvaluationProtocol, first: int, count: int, states: Tensor | None, goals: Tensor | None
) -> Sample:
    """Environment i of the task becomes pair first + i; environments beyond ``count`` repeat the last pair."""
    rows = (first + torch.arange(task.num)).clamp_max(first + count - 1)
    return task.reset(
        seed=protocol.seed + first,
        state=None if states is None else states[rows],
        goal=None if goals is None else goals[rows],
    )


def _pair_bytes(sample: Sample, count: int) -> bytes:
    both = torch.cat([sample.state[:count, -1], sample.goal.state[:count, -1]], dim=1)
    return both.cpu().double().numpy().round(5).tobytes()


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)
