"""Let a fitted policy probe act, and measure its success in the environment: the work of ``jepa act``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_choice
from jepa.evaluation import Report
from jepa.schema import Sample, World
from jepa.tasks import latents
from jepa.tasks.features import AVERAGED, Pool, fingerprint
from jepa.tasks.judging import Trial, describe, judge
from probes import saved
from probes.policy import ActionProbe


class ProbePolicy:
    """A fitted policy probe as a policy: encodes the present and the goal, then acts out one block of actions.

    ``seconds["total"]`` lists the time of every call that encoded anything.

    Args:
        world: encodes frames; must be the world whose features the probe was fitted on.
        probe: a fitted probe with action as its target, on the world's device.
        pool: how the feature cache pooled the tokens.
        execute: environment steps of a block that are acted out before the next is asked for; all by default.
        layers: numbers of the blocks whose outputs it kept; the latents of encode by default.
    """

    def __init__(
        self,
        world: World,
        probe: ActionProbe,
        pool: Pool = "none",
        execute: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.world, self.probe, self.pool, self.space = world, probe.eval(), pool, world.specs.action
        self.layers = None if layers is None else tuple(layers)
        self.execute = self.space.block if execute is None else execute
        self.device = probe.target.mean.device
        if (width := len(probe.target.mean)) != self.space.width:
            raise InputError(
                f"the probe answers {width} numbers, the world's actions have {self.space.width}: fit the "
                "probe on target action, on features of this world"
            )
        if not 1 <= self.execute <= self.space.block:
            raise InputError(f"execute={execute}: expected 1 to {self.space.block}, the environment steps of a block")
        self.seconds: dict[str, list[float]] = {"total": []}
        self._allocate(0)

    def _allocate(self, count: int) -> None:
        self._queue = torch.zeros(count, self.space.block, self.space.env_width)
        self._taken = torch.full((count,), self.execute)  # actions of the block that were executed
        self._zero = replace(self.space, block=1).clip(torch.zeros(self.space.env_width))

    def reset(self, done: Tensor) -> None:
        """Drop what is left of the blocks of the environments where ``done [B]`` is true."""
        done = done.cpu()
        if len(done) != len(self._taken):
            self._allocate(len(done))
        self._taken[done] = self.execute

    def act(self, sample: Sample, active: Tensor | None = None) -> Tensor:
        """The present (T=1, with its goal) of B environments -> raw environment actions ``[B,a]``.

        Where ``active [B]`` is false nothing is encoded, and the action is zero, as ``ActionSpec.clip`` has it.
        """
        if sample.video is None or sample.goal is None or sample.goal.video is None:
            raise InputError("a policy probe was given no video or no goal: expected both, make a task with goals")
        batch = len(sample.video)
        if len(self._taken) != batch:
            self._allocate(batch)
        active = torch.ones(batch, dtype=torch.bool) if active is None else active.cpu()
        due = (active & (self._taken == self.execute)).nonzero()[:, 0]
        if len(due):
            self._decide(sample, due)
        rows = active.nonzero()[:, 0]
        action = self._zero.repeat(batch, 1)
        action[rows] = self._queue[rows, self._taken[rows]]
        self._taken[rows] += 1
        return action

    @torch.inference_mode()
    def _decide(self, sample: Sample, rows: Tensor) -> None:
        start = time.perf_counter()
        z, goal = (self._encode(frame, rows) for frame in (sample, sample.goal))
        block = self.probe.act(z, goal).float()
        assert block.isfinite().all(), f"the probe answers {block.tolist()}"
        block = self.space.clip(block).cpu()
        self._queue[rows] = block.unflatten(1, (self.space.block, self.space.env_width))
        self._taken[rows] = 0
        self.seconds["total"].append(time.perf_counter() - start)

    def _encode(self, sample: Sample, rows: Tensor) -> Tensor:
        """z [b,1,N,D] of pixels and proprioception only: nothing else of the sample is touched."""
        seen = Sample(video=sample.video, proprio=sample.proprio).map(lambda value: value[rows.to(value.device)])
        settings = latents.Settings(device=str(self.device), pool=self.pool, layers=self.layers)
        return latents.pooled(latents.encode(self.world, seen, settings), self.world, settings)


def act(
    world: World,
    probe: Path,
    protocol: str,
    out: Path,
    execute: int | None = None,
    pairs: int | None = None,
    num: int = 50,
    episodes: Path | None = None,
    parts: tuple[float, float, float] = (0.9, 0.05, 0.05),
    split_seed: int = 0,
    against: Path | None = None,
    floors: bool = True,
    decisions: int = 20,
    name: str = "",
    device: str = "cpu",
    force: bool = False,
) -> Report:
    """Evaluate a fitted policy probe in its environment; write report.json and trajectories.npz.

    Args:
        world: the encoder, e.g. class_path jepa.checkpoints.load with init_args path
        probe: folder of a fitted policy probe (``jepa probe``, e.g. -c probe/goal_policy)
        protocol: name of the evaluation protocol, e.g. two_rooms/v1
        out: folder of the report
        execute: environment steps of an answer that are executed before the next is asked for; all by default
        pairs: judge only the first so many pairs of the protocol
        num: environments at once
        episodes: dataset whose test episodes give starts and goals, for the protocols that want them
        parts: train, validation and test parts of the episodes, as they were in training
        split_seed: of that split, as it was in training
        against: an earlier report.json of the same pairs, e.g. of ``jepa plan``; the paired comparison joins this one
        floors: judge a random and a do-nothing policy on the same pairs too
        decisions: how many decisions of one environment alone are timed; 0 for none
        name: of this policy in the table; by default the probe's class
        device: where world and probe run, e.g. cuda
        force: show how world and environment disagree, and go on

    Raises:
        InputError: no fitted policy probe, one of another world, unknown protocol, world of another environment,
            episodes missing, a report of other pairs
    """
    trial = Trial(protocol, out, pairs, num, episodes, parts, split_seed, against, floors, decisions, force)
    fitted, report = saved.load(probe)
    features = _check(fitted, report, probe, world)
    policy = ProbePolicy(world.to(device).eval(), fitted.to(device), features["pool"], execute, features.get("layers"))
    settings = {
        "probe": str(probe),
        **{key: report["recipe"][key] for key in ("class_path", "init_args")},
        "fit": {**report["settings"], report["metric"]: report[report["metric"]]},
        "execute": policy.execute,
        "features": features,
        "specs": describe(world.specs),
    }
    return judge(policy, world.specs, trial, name or type(fitted).__name__, settings)


def _check(fitted: nn.Module, report: dict[str, Any], probe: Path, world: World) -> dict[str, Any]:
    """What the report says of the features of its fit; InputError where the probe cannot act in this world."""
    if not isinstance(fitted, ActionProbe) or report.get("target") != "action":
        raise InputError(
            f"{probe} holds a {type(fitted).__name__} of {report.get('target')}, which is no policy: fit one, "
            "jepa probe -c probe/goal_policy"
        )
    if not isinstance(world, nn.Module):
        raise InputError(f"world is a {type(world).__name__}: expected a torch module with encode(sample)")
    try:
        features = report["seeds"][0]["features"]
        weights, pool = features["weights"], check_choice("pool", features["pool"], AVERAGED)
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{probe} does not say which features it was fitted on: fit it again") from error
    if weights != fingerprint(world):
        raise InputError(
            f"{probe} was fitted on features of other weights ({features.get('path')}): "
            "give their checkpoint as the world, or embed with this one and fit again"
        )
    return {**features, "pool": pool}
