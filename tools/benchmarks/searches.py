"""LeWM's plan and that of our default, measured: the parts of the benchmark of plans that search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from jepa.checkpoints import load
from jepa.models.encoders import ConvNet
from jepa.models.lewm import ClassTokenViT, WindowPredictor
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import Online
from jepa.models.world import WorldModel
from jepa.planning import CEM, ICEM, GoalLatent, imagined
from jepa.schema import ActionSpec, ObservationSpec, Plan, Problem, Sample, Specs
from tools.benchmarks import measure
from tools.benchmarks.reference_plan import PublishedLeWM

SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # encoder and predictor
    "tiny": (  # to try the tool
        {"dim": 32, "size": 28, "width": 24, "depth": 1, "hidden": 32},
        {"dim": 32, "width": 32, "depth": 2, "heads": 2, "head": 16, "hidden": 64, "projector_hidden": 64},
    ),
    "published": ({}, {}),
}
CONFIGS = Path(__file__).parents[2] / "configs"
HORIZON, BLOCK, WIDTH = 5, 5, 2  # of LeWM on PushT: model steps, environment steps in each, numbers of an action
ELITES = 0.1  # of the candidates, in LeWM
LIMIT = 1e-4  # of the difference of normalised plans
UNBOUNDED = (-float("inf"),) * WIDTH, (float("inf"),) * WIDTH


@dataclass(frozen=True)
class Setting:
    """What all parts compute with."""

    size: str
    candidates: int
    iterations: int
    repeats: int
    device: str

    @property
    def elites(self) -> int:
        return max(2, round(ELITES * self.candidates))

    def planner(self) -> CEM:
        """LeWM's search: nothing keeps the standard deviation up."""
        return CEM(self.candidates, self.elites, self.iterations, self.iterations, min_std=0.0)


def lewm_world(size: str, device: str = "cpu") -> WorldModel:
    """LeWM with drawn weights, those of the modulations too: they begin at zero, and no action would matter."""
    torch.manual_seed(0)
    encoder, predictor = SIZES[size]
    world = WorldModel(ClassTokenViT(**encoder), WindowPredictor(**predictor), Online())
    pixels = world.encoder.size
    world.bind(Specs(ActionSpec(*UNBOUNDED, (0.0,) * WIDTH, (1.0,) * WIDTH, BLOCK), _square(pixels)))
    for block in world.predictor.blocks:
        nn.init.normal_(block.modulation[1].weight, std=0.1)
    return world.to(device).eval()


def default_world(path: Path | None, device: str = "cpu") -> WorldModel:
    """A checkpoint, or what configs/pretrain/two_rooms.yaml trains, with drawn weights."""
    if path is not None:
        return load(str(path), device=device)
    torch.manual_seed(0)
    world = WorldModel(ConvNet(dim=32, size=64), ActionPredictor(32, width=128, depth=2, heads=4, window=9), Online())
    world.bind(Specs(ActionSpec((-1.0,) * WIDTH, (1.0,) * WIDTH, (0.0,) * WIDTH, (1.0,) * WIDTH, 3), _square(64)))
    return world.to(device).eval()


def _square(size: int) -> ObservationSpec:
    return ObservationSpec(size, size)


def frames(world: WorldModel, count: int = 1) -> tuple[Tensor, Tensor]:
    """Noise to look at, and noise to reach: uint8 [count,1,C,H,W] each."""
    about, draw = world.specs.observation, torch.Generator().manual_seed(1)
    shape = (2, count, 1, about.channels, about.height, about.width)
    frame, goal = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(next(world.parameters()).device)
    return frame, goal


def noise(setting: Setting, number: int) -> Tensor:
    """[I,S-1,H,A]: the numbers that our planner draws from this seed, before anything is measured."""
    draw = torch.Generator(setting.device).manual_seed(number)
    shape = (setting.candidates - 1, WIDTH, HORIZON * BLOCK)
    drawn = [torch.randn(shape, generator=draw, device=setting.device) for _ in range(setting.iterations)]
    return torch.stack(drawn).transpose(-1, -2).reshape(setting.iterations, -1, HORIZON, BLOCK * WIDTH)


@torch.inference_mode()
def decide(
    world: WorldModel,
    planner: CEM,
    pixels: tuple[Tensor, Tensor],
    horizon: int,
    cost: GoalLatent,
    seed: int,
    warm: Tensor | None = None,
    watch: Callable[[Tensor], object] | None = None,
) -> Plan:
    """A decision of the library, from pixels to the plan on the host; ``watch`` sees the costs of every iteration."""
    frame, goal = pixels
    z, goal = world.encode(Sample(video=frame)), world.encode(Sample(video=goal))
    draw = torch.Generator(z.device).manual_seed(seed)
    problem = imagined(world, cost, z, goal, None, horizon, device=z.device, generator=draw)
    plan = planner.plan(problem if watch is None else _watched(problem, watch), warm)
    plan.action.cpu()
    return plan


def _watched(problem: Problem, watch: Callable[[Tensor], object]) -> Problem:
    def price(action: Tensor) -> Tensor:
        cost = problem.cost(action)
        watch(cost)
        return cost

    return replace(problem, cost=price)


def lewm(setting: Setting) -> dict[str, Any]:
    """LeWM's plan, against the published structure and against its successor's."""
    world = lewm_world(setting.size, setting.device)
    pixels, planner, cost = frames(world), setting.planner(), GoalLatent("l2", "last")
    drawn = [noise(setting, number) for number in range(setting.repeats)]
    published, successor = PublishedLeWM(world), PublishedLeWM(world, once=True)
    difference = _same_elites(setting, world, pixels, drawn[0], (published, successor))
    ways = {
        "published": lambda number: published.plan(*pixels, drawn[number], setting.elites),
        "successor": lambda number: successor.plan(*pixels, drawn[number], setting.elites),
        "ours": lambda number: decide(world, planner, pixels, HORIZON, cost, number),
    }
    times = measure.interleaved(ways, setting.repeats, setting.device)
    steps = setting.candidates * setting.iterations * HORIZON
    return measure.compared({name: times[name] for name in ("published", "ours")}) | {
        "successor": measure.compared({"published": times["successor"], "ours": times["ours"]}),
        "candidate-steps": steps,
        "candidate-steps per second": measure.summary(steps / times["ours"].wall),
        "iterations with identical elites": setting.iterations,
        "largest difference of the plans": difference,
    }


def _same_elites(
    setting: Setting, world: WorldModel, pixels: tuple[Tensor, Tensor], drawn: Tensor, others: tuple[PublishedLeWM, ...]
) -> float:
    """Largest difference of normalised plans; what is measured must choose the same elites at every iteration."""
    costs: list[Tensor] = []
    plan = decide(world, setting.planner(), pixels, HORIZON, GoalLatent("l2", "last"), 0, watch=costs.append)
    mine = [set(cost[0].topk(setting.elites, largest=False).indices.tolist()) for cost in costs[: setting.iterations]]
    worst = 0.0
    for other in others:
        theirs: list[set[int]] = []
        action = other.plan(*pixels, drawn, setting.elites, lambda _, best: theirs.append(set(best.tolist())))
        differ = [number for number, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
        assert not differ, f"other elites from iteration {differ[0]} on: {mine[differ[0]] ^ theirs[differ[0]]}"
        worst = max(worst, (action - plan.action[0]).abs().max().item())
    assert worst < LIMIT, f"the same elites, but plans that differ by {worst}"
    return worst


def default(setting: Setting, mine: WorldModel, origin: str) -> dict[str, Any]:
    """A decision of our default planner and model, without and with a warm start, against LeWM's published plan."""
    theirs = lewm_world(setting.size, setting.device)
    published, drawn = PublishedLeWM(theirs), noise(setting, 0)
    told = yaml.safe_load((CONFIGS / "plan/two_rooms.yaml").read_text())
    planner = ICEM(**yaml.safe_load((CONFIGS / "planner/icem.yaml").read_text())["init_args"])
    about = told["horizon"], GoalLatent(**told["cost"]["init_args"])
    here, there = frames(mine), frames(theirs)
    warm = decide(mine, planner, here, *about, 0).action
    ways = {
        "published": lambda number: published.plan(*there, drawn, setting.elites),
        "first": lambda number: decide(mine, planner, here, *about, number),
        "later": lambda number: decide(mine, planner, here, *about, number, warm),
    }
    times = measure.interleaved(ways, setting.repeats, setting.device)
    pairs = {name: {"published": times["published"], "ours": times[name]} for name in ("first", "later")}
    covered = HORIZON * BLOCK / mine.specs.action.block  # LeWM executes its whole plan, we one model step
    return {name: measure.compared(pair) for name, pair in pairs.items()} | {
        "per environment step": measure.summary(times["published"].wall / times["later"].wall / covered),
        "world": origin,
        "success": "not measured here: plan with plan/two_rooms and plan/lewm_two_rooms, then `jepa plan --compare`",
    }


def environments(setting: Setting, count: int) -> dict[str, Any]:
    """LeWM's plan for many environments in one batch, against one environment after the other."""
    world = lewm_world(setting.size, setting.device)
    planner, cost = setting.planner(), GoalLatent("l2", "last")
    frame, goal = frames(world, count)

    def singly(number: int) -> Tensor:
        rows = range(count)
        plans = [decide(world, planner, (frame[[i]], goal[[i]]), HORIZON, cost, number).action for i in rows]
        return torch.cat(plans)

    def together(number: int) -> Tensor:
        return decide(world, planner, (frame, goal), HORIZON, cost, number).action

    difference = (singly(0) - together(0)).abs().max().item()
    times = measure.interleaved({"published": singly, "ours": together}, setting.repeats, setting.device)
    return measure.compared(times) | {"environments": count, "largest difference of the plans": difference}
