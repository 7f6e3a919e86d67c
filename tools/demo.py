"""The verb ``jepa demo``: from pixels to plans in one command, and a page that shows what came out."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from jepa.checkpoints.load import load, read
from jepa.cli import run
from jepa.data.hdf5 import Hdf5Episodes
from jepa.errors import InputError
from jepa.evaluation import Report as PlanReport
from tools import figures
from tools.report import PlanningRow, ProbeRow, Report, Score, Stage, write_report

log = logging.getLogger(__name__)

PROBES = {
    "linear": "position of the dot, linear",
    "neighbours": "position of the dot, nearest neighbours",
    "attentive": "position of the dot, attentive",
    "inverse_dynamics": "action between two frames (inverse dynamics)",
    "goal_policy": "action towards a later frame (goal-conditioned cloning)",
}
SUMMARY = (
    "From recorded pixels of a wandering dot, a joint-embedding predictive world model was pretrained without labels, "
    "rewards or a pixel decoder; its frozen latents were probed, and plans were searched in its imagination to reach "
    "goal images in the other room."
)


@dataclass
class Stages:
    """Runs the commands of the demo and remembers what was typed and how long each stage took."""

    commands: list[str] = field(default_factory=list)
    seconds: list[Stage] = field(default_factory=list)

    def command(self, verb: str, *args: str) -> None:
        self.commands.append(" ".join(["jepa", verb, *args]))
        log.info("$ %s", self.commands[-1])
        run(verb, list(args))

    @contextmanager
    def stage(self, name: str, training: bool = False) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.append(Stage(name, time.perf_counter() - start, training))


def demo(
    out: Path = Path("runs/demo"), episodes: int = 1000, max_steps: int | None = None, pairs: int = 60
) -> str:
    """Collect, pretrain, probe, plan and report on Two Rooms, in minutes on two CPU cores.

    Args:
        out: folder of everything that the demo writes; report.html is the page to look at
        episodes: episodes to collect, of 64 steps
        max_steps: optimiser steps of the pretraining; the config's by default
        pairs: pairs of start and goal to plan for
    """
    if out.parent != Path("runs"):
        raise InputError(f"out was given {out}; the configs write to runs/NAME, e.g. --out=runs/demo")
    stages = Stages()
    data = out / "episodes.h5"
    shared = (f"--vars.run={out.name}",)
    with stages.stage("collect episodes"):
        data.unlink(missing_ok=True)
        record = ("two_rooms", "--script=wander", f"--episodes={episodes}", "--steps=64", f"--out={data}")
        stages.command("collect", *record)
    with stages.stage("pretrain the world model", training=True):
        steps = () if max_steps is None else (f"--trainer.max_steps={max_steps}",)
        stages.command("fit", "-c", "pretrain/two_rooms", *shared, f"--data.path={data}", *steps)
    with stages.stage("embed frames: trained, untrained, raw pixels"):
        embed = ("embed", "-c", "embed/two_rooms", *shared, f"--data.path={data}", "--limit=200")
        stages.command(*embed)
        stages.command(*embed, "--world.untrained=true", f"--out={out}/features_untrained")
        stages.command("embed", "-c", "embed/pixels_two_rooms", *embed[3:])
    with stages.stage("fit probes"):
        for name in PROBES:
            stages.command("probe", "-c", f"probe/{name}", *shared)
    with stages.stage("plan"):
        stages.command("plan", "-c", "plan/two_rooms", *shared, f"--pairs={pairs}")
    with stages.stage("inspect the world model"):
        examined = (f"--data={data}", f"--out={out}/world", "--windows=100", "--rate=0.05")
        stages.command("inspect", "world", str(out / "last.ckpt"), *examined)
    with stages.stage("draw figures"):
        drawn = figures.draw(out, data)
    page = write_report(_report(out, stages), drawn, out)
    return f"{_headline(out)}\n{page}"


def _report(out: Path, stages: Stages) -> Report:
    plan = PlanReport.load(out / "plan/report.json")
    return Report(
        title="Two Rooms: from pixels to plans",
        summary=SUMMARY,
        probes=[_probe_row(name, json.loads((out / f"probe/{name}/report.json").read_text())) for name in PROBES],
        planning=[_planning_row(plan), *(_planning_row(floor, floor=True) for floor in plan.floors.values())],
        stages=stages.seconds,
        frames_per_second=figures.frames_per_second(out),
        settings={
            "protocol": plan.protocol["name"],
            "pairs of start and goal": plan.pairs,
            "environment steps allowed": plan.protocol["budget"],
            "episodes collected": len(Hdf5Episodes(out / "episodes.h5")),
            "optimiser steps": read(out / "last.ckpt")["global_step"],
            "parameters of encoder and predictor": _parameters(out / "last.ckpt"),
        },
        versions={name: version(name) for name in ("torch", "lightning", "numpy", "faiss-cpu", "gymnasium", "timm")},
        machine={
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        commands=stages.commands,
    )


def _parameters(checkpoint: Path) -> int:
    world = load(str(checkpoint))
    return sum(p.numel() for part in (world.encoder, world.predictor) for p in part.parameters())


def _probe_row(name: str, found: dict[str, Any]) -> ProbeRow:
    def score(part: dict[str, Any]) -> Score:
        return Score(part["r2"], *(part["r2_interval"] or ()))  # one test episode has no interval

    mean = "mean action" if found["target"] == "action" else "mean position"
    beside = {baseline: score(part) for baseline, part in found["baselines"].items()}
    return ProbeRow(PROBES[name], "R2", score(found), beside["untrained"], Score(0.0), mean, pixels=beside["pixels"])


def _planning_row(report: PlanReport, floor: bool = False) -> PlanningRow:
    timing = report.alone
    return PlanningRow(
        report.policy,
        report.pairs,
        Score(report.rate, *report.interval),
        report.solved_at_start,
        median(solved) if (solved := [step for step in report.steps if step >= 0]) else None,
        timing.p50_ms,
        timing.p95_ms,
        floor,
    )


def _headline(out: Path) -> str:
    plan = PlanReport.load(out / "plan/report.json")
    probe = json.loads((out / "probe/linear/report.json").read_text())
    low, high = plan.interval
    beside = ", ".join(f"{name} {part['r2']:.3f}" for name, part in probe["baselines"].items())
    return (
        f"planning: {100 * plan.rate:.0f} % of {plan.pairs} pairs [{100 * low:.0f}, {100 * high:.0f}], "
        f"random policy {100 * plan.floors['random'].rate:.0f} %; "
        f"linear probe of the position: R2 {probe['r2']:.3f}, {beside}"
    )
