"""Success against effort: every planner with more and more candidates, on the same pairs of start and goal."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from jepa.axes import Axis
from jepa.checkpoints import load
from jepa.envs import make
from jepa.errors import InputError, check_choice
from jepa.evaluation import Report, evaluate, find_protocol
from jepa.files import write_atomically
from jepa.models.world import WorldModel
from jepa.planning import (
    CEM,
    ICEM,
    MPC,
    MPPI,
    CategoricalCEM,
    Collocation,
    GoalLatent,
    GradientPlanner,
    Nevergrad,
    RandomShooting,
    TreeSearch,
    check_specs,
)
from jepa.schema import Plan, Planner, Problem, Sample
from jepa.svg import document, text
from tools.benchmarks import measure

CONFIGS = Path(__file__).parents[2] / "configs"
Name = Literal["random", "cem", "icem", "mppi", "gradient", "collocation", "categorical", "tree", "nevergrad"]
KINDS: dict[str, Callable[..., Planner]] = {
    "random": RandomShooting,
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "gradient": GradientPlanner,
    "collocation": Collocation,
    "categorical": CategoricalCEM,
    "tree": TreeSearch,
    "nevergrad": Nevergrad,
}
DESCENDS = ("gradient", "collocation")
BACKWARD = 4  # these are given so many times fewer starts than others candidates: they step more often
FEWEST = 4  # candidates; an eighth of them are elites, at least two
WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 640, 400, 64, 24, 76, 48
LINE = 18  # of the legend


def planner(name: str, candidates: int) -> Planner:
    """The planner of its config, with so many candidates and an eighth of them elites, or so many simulations."""
    path = CONFIGS / f"planner/{name}.yaml"
    settings = yaml.safe_load(path.read_text())["init_args"] if path.is_file() else {"std": 1.4, "hold": 3}
    if name == "tree":
        settings["simulations"] = settings["first_simulations"] = candidates
    else:
        settings["candidates"] = max(2, candidates // BACKWARD) if name in DESCENDS else candidates
    if "elites" in settings:
        settings["elites"] = max(2, candidates // 8)
        if kept := signature(KINDS[name]).parameters.get("keep"):
            settings["keep"] = min(settings.get("keep", kept.default), settings["elites"])
    return KINDS[name](**settings)


class Counted:
    """A world that counts the steps it imagines, one for each candidate; a gradient through them counts them again."""

    def __init__(self, world: WorldModel) -> None:
        self.world, self.specs, self.steps = world, world.specs, 0

    def encode(self, sample: Sample) -> Tensor:
        return self.world.encode(sample)

    def rollout(self, z: Tensor, action: Tensor, past: Tensor | None = None) -> Tensor:
        self._count(action)
        return self.world.rollout(z, action, past)

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        self._count(action)
        return self.world.predict(z, action)

    def _count(self, action: Tensor) -> None:
        self.steps += action.shape[:-1].numel() * (2 if action.requires_grad else 1)


class Asked:
    """A planner that counts its decisions."""

    def __init__(self, inner: Planner) -> None:
        self.inner, self.decisions = inner, 0

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        self.decisions += problem.batch
        return self.inner.plan(problem, warm)


def point(world: WorldModel, name: str, candidates: int, protocol: str, pairs: int) -> dict[str, Any]:
    """Success of one planner of one size."""
    rules = find_protocol(protocol).with_pairs(pairs)
    told = yaml.safe_load((CONFIGS / "plan/two_rooms.yaml").read_text())
    task = make(rules.env, num=min(50, pairs), size=world.specs.observation.height, **rules.env_options)
    counted, asked = Counted(world), Asked(planner(name, candidates))
    policy = MPC(counted, asked, GoalLatent(**told["cost"]["init_args"]), told["horizon"])
    try:
        check_specs(world.specs, task.specs)
        report: list[Report] = []
        seconds = measure.clock(
            lambda: report.append(evaluate(policy, task, rules, floors=False, decisions=0, progress=False))
        )
    finally:
        task.close()
    return {
        "candidates": candidates,
        "candidate-steps of a decision": counted.steps / max(1, asked.decisions),
        "rate": report[0].rate,
        "interval": list(report[0].interval),
        "steps": report[0].steps,
        "pairs_digest": report[0].pairs_digest,
        "cpu_seconds of a decision": seconds[1] / max(1, asked.decisions),
    }


def anytime(
    world: Path,
    planners: list[Name] = ["random", "cem", "icem", "mppi", "gradient", "collocation", "categorical", "tree"],
    candidates: list[int] = [4, 8, 16, 32, 64],
    pairs: int = 30,
    protocol: str = "two_rooms/v1",
    threads: int = 1,
    out: Path = Path("runs/benchmarks/anytime.json"),
) -> str:
    """Success against candidate-steps, with horizon and cost of configs/plan/two_rooms.yaml; JSON, and a figure beside.

    A candidate-step is one step of the world model for one candidate; the gradient through it counts as another.

    Args:
        world: a checkpoint
        planners: random, cem, icem, mppi, gradient, collocation, categorical, tree, nevergrad
        candidates: sizes of the searches, rising; gradient and collocation have a quarter of them as starts, the tree
            search as many simulations
        pairs: of start and goal
        protocol: one that lets the environment draw its pairs: two_rooms/v1 or two_rooms_random/v1
        threads: of torch
        out: the JSON file to write; the figure has the same name with the ending svg
    """
    for name in planners:
        check_choice("planners", name, KINDS)
    if not planners or not candidates or min(candidates) < FEWEST or sorted(set(candidates)) != candidates or pairs < 2:
        raise InputError(
            f"planners={planners}, candidates={candidates} and pairs={pairs}: expected at least one planner, rising "
            f"numbers of at least {FEWEST} candidates, and 2 pairs"
        )
    if find_protocol(protocol).goals != "environment":
        raise InputError(f"protocol {protocol} takes its pairs from episodes; use two_rooms/v1 or two_rooms_random/v1")
    with measure.threads(threads):
        loaded = load(str(world))
        results = {name: [point(loaded, name, size, protocol, pairs) for size in candidates] for name in planners}
        digests = {part["pairs_digest"] for parts in results.values() for part in parts}
        assert len(digests) == 1, f"the planners were judged on other pairs: {digests}"
        about = measure.about() | {"world": str(world), "protocol": protocol, "pairs": pairs}
        measure.write(out, {"benchmark": "anytime", "results": results, "about": about})
    drawing = figure(results, f"{protocol}, {pairs} pairs")
    write_atomically(out.with_suffix(".svg"), lambda file: file.write(drawing.encode()))
    return "\n".join(_told(results, pairs))


def _told(results: dict[str, list[dict[str, Any]]], pairs: int) -> list[str]:
    lines = [f"{'planner':<10} {'candidates':>10} {'steps/decision':>15} {'success':>8}  interval ({pairs} pairs)"]
    for name, parts in results.items():
        for part in parts:
            low, high = (100 * end for end in part["interval"])
            steps, rate = part["candidate-steps of a decision"], 100 * part["rate"]
            lines.append(f"{name:<10} {part['candidates']:>10} {steps:>15,.0f} {rate:>6.0f} %  {low:.0f} to {high:.0f}")
    return lines


def figure(results: dict[str, list[dict[str, Any]]], note: str) -> str:
    """A line with its 95 % intervals for each planner, over the candidate-steps of a decision."""
    steps = [part["candidate-steps of a decision"] for parts in results.values() for part in parts]
    top = TOP + LINE * len(results)
    height = HEIGHT + LINE * len(results)
    across = Axis(min(steps) / 1.15, max(steps) * 1.15, LEFT, WIDTH - RIGHT, log=True)
    down = Axis(0.0, 100.0, height - FOOT, top)
    marks = [text(20, 28, "Success against effort", "title"), text(20, 50, f"success in %: {note}", "soft")]
    for tick in down.ticks():
        place = float(down.place(tick))
        marks += [f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>']
        marks += [text(LEFT - 8, place + 4, f"{tick:g}", "soft end")]
    marks += [text(float(across.place(t)), height - FOOT + 18, f"{t:g}", "soft middle") for t in across.ticks()]
    for number, (name, parts) in enumerate(results.items()):
        above = 70 + LINE * number
        marks += [f'<path class="line s{number}" d="M20 {above - 4}h18"/>', text(44, above, name, "soft")]
        marks += _curve(number, parts, across, down)
    marks.append(text((LEFT + WIDTH - RIGHT) / 2, height - 10, "candidate-steps of a decision", "soft middle"))
    rates = {name: [100 * part["rate"] for part in parts] for name, parts in results.items()}
    told = "; ".join(f"{name} {line[0]:.0f} to {line[-1]:.0f}" for name, line in rates.items())
    return document(WIDTH, height, f"Success in % from few to many candidate-steps, {note}: {told}", "".join(marks))


def _curve(number: int, parts: list[dict[str, Any]], across: Axis, down: Axis) -> list[str]:
    xs = [float(across.place(part["candidate-steps of a decision"])) for part in parts]
    ys = [float(down.place(100 * part["rate"])) for part in parts]
    ends = [[float(down.place(100 * end)) for end in part["interval"]] for part in parts]
    bars = [f'<path class="s{number}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>' for x, (low, high) in zip(xs, ends)]
    dots = [f'<circle class="f{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in zip(xs, ys)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys))
    return [*bars, f'<path class="line s{number}" d="M{path}"/>', *dots]
