"""A plan: LeWM's and V-JEPA 2-AC's the published way against ours, our default against LeWM's, many environments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.models.vjepa2_ac import PosePredictor
from tools.benchmarks import measure
from tools.benchmarks.reference_plan import recomputed
from tools.benchmarks.searches import SIZES, Setting, default, default_world, environments, lewm

Part = Literal["lewm", "default", "cache", "environments"]
PARTS = ("lewm", "default", "cache", "environments")
POSE = 7  # numbers of a pose of V-JEPA 2-AC, and of an action
LIMIT = 1e-4  # of the difference of forecasts, which layer norm has brought to unit size


def pose_predictor(shape: tuple[int, int, int], grid: int, device: str = "cpu") -> PosePredictor:
    """V-JEPA 2-AC's predictor with drawn weights."""
    torch.manual_seed(0)
    width, depth, heads = shape
    predictor = PosePredictor(width, width, depth, heads, (grid, grid))
    predictor.bind(POSE, POSE)
    return predictor.to(device).eval()


@torch.inference_mode()
def cache(setting: Setting, predictor: PosePredictor, plans: int) -> dict[str, Any]:
    """V-JEPA 2-AC's rollout with the cache against the rollout that computes all frames anew, at horizons 2 and 3."""
    found = {}
    for horizon in (2, 3):
        z = torch.randn(1, predictor.tokens, predictor.dim, device=setting.device)
        action, pose = torch.randn(2, plans, horizon, POSE, device=setting.device)
        ways = {
            "published": lambda number: recomputed(predictor, z, action, pose),
            "ours": lambda number: cached(predictor, z, action, pose),
        }
        difference = (ways["published"](0) - ways["ours"](0)).abs().max().item()
        assert difference < LIMIT, f"the forecasts of the cache differ by {difference}"
        times = measure.interleaved(ways, setting.repeats, setting.device)
        rates = {name: measure.summary(plans * horizon / time.wall) for name, time in times.items()}
        exact = {"candidate-steps per second": rates, "largest difference of the forecasts": difference}
        found[f"horizon {horizon}"] = measure.compared(times) | exact
    return found


def cached(predictor: PosePredictor, z: Tensor, action: Tensor, pose: Tensor) -> Tensor:
    """As ``recomputed``, the way that the library rolls out."""
    state = predictor.begin(z[:, None], action[:1, :0], pose[:1, :0]).expand(len(action))
    forecasts = []
    for step in range(action.shape[1]):
        latent, state = predictor.step(state, action[:, step], pose[:, step])
        forecasts.append(latent)
    return torch.stack(forecasts, dim=1)


def plan(
    parts: list[Part] = ["lewm", "default", "cache"],
    size: str = "published",
    candidates: int = 300,
    iterations: int = 30,
    world: Path | None = None,
    shape: tuple[int, int, int] = (384, 6, 6),
    grid: int = 16,
    plans: int = 4,
    count: int = 50,
    threads: int = 1,
    repeats: int = 5,
    device: str = "cpu",
    out: Path | None = None,
) -> str:
    """Compare plans from pixels to actions, on the same weights and the same noise, drawn beforehand.

    Args:
        parts: lewm, default, cache, environments
        size: of LeWM: published, or tiny to try the tool
        candidates: of LeWM's search, a tenth of them elites
        iterations: of LeWM's search
        world: a checkpoint to take the default model from; drawn weights of the same sizes by default
        shape: width, depth and heads of V-JEPA 2-AC's predictor; published: 1024, 24, 16
        grid: rows and columns of its frames
        plans: its candidates
        count: environments of the part ``environments``
        threads: of torch on the CPU
        repeats: measured calls of each way
        device: cpu or cuda
        out: a JSON file to write
    """
    for part in parts:
        check_choice("parts", part, PARTS)
    if not parts:
        raise InputError(f"parts was given none: expected at least one of {', '.join(PARTS)}")
    check_choice("size", size, SIZES)
    if min(iterations, plans, count, grid, threads, *shape) < 1 or candidates < 4 or repeats < 2:
        raise InputError(
            f"candidates={candidates}, iterations={iterations}, plans={plans}, count={count}, grid={grid}, "
            f"shape={shape}, threads={threads}, repeats={repeats}: expected at least 4 candidates, "
            "2 repetitions and 1 of the others"
        )
    setting = Setting(size, candidates, iterations, repeats, device)
    # what may be wrong with the input is found before anything is measured
    mine, predictor = default_world(world, device), pose_predictor(shape, grid, device)
    origin = "drawn weights" if world is None else str(world)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "lewm": lambda: lewm(setting),
        "default": lambda: default(setting, mine, origin),
        "cache": lambda: cache(setting, predictor, plans),
        "environments": lambda: environments(setting, count),
    }
    with measure.threads(threads):
        results = {part: ways[part]() for part in parts}
        about = measure.about(device) | {"setting": vars(setting)}
        measure.write(out, {"benchmark": "plan", "results": results, "about": about})
    return "\n".join(line for part, result in results.items() for line in TOLD[part](result))


def _lewm_told(result: dict[str, Any]) -> list[str]:
    return [
        "LeWM's plan, ours against the published structure",
        *measure.lines(result),
        measure.told("times as fast as its successor", result["successor"]["ratio"], "x"),
        measure.told("the same by CPU time", result["successor"]["cpu_ratio"], "x"),
        measure.told("ours", result["candidate-steps per second"], "candidate-steps/s", digits=0),
        f"  {'identical elites':<36} in all of {result['iterations with identical elites']} iterations",
        _apart("plans", result),
    ]


def _default_told(result: dict[str, Any]) -> list[str]:
    return [
        f"A decision of our default planner and model ({result['world']}), against LeWM's published plan",
        *(line for name in ("first", "later") for line in _decision_told(name, result[name])),
        measure.told("later, for each environment step", result["per environment step"], "x", digits=1),
        f"  success: {result['success']}",
    ]


def _decision_told(name: str, result: dict[str, Any]) -> list[str]:
    return [
        measure.told(f"{name} decision", result["seconds"]["ours"], "ms", 1e3),
        measure.told(f"{name}, times as fast", result["ratio"], "x", digits=1),
        measure.told(f"{name}, by CPU time", result["cpu_ratio"], "x", digits=1),
    ]


def _cache_told(result: dict[str, Any]) -> list[str]:
    told = []
    for name, part in result.items():
        rates = part["candidate-steps per second"]
        told += [f"V-JEPA 2-AC with the cache against all frames anew, {name}", *measure.lines(part)]
        told += [measure.told(way, rates[way], "candidate-steps/s") for way in ("published", "ours")]
        told += [_apart("forecasts", part)]
    return told


def _environments_told(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['environments']} environments in one batch (ours) against one after the other (published way)",
        *measure.lines(result),
        _apart("plans", result),
    ]


def _apart(what: str, result: dict[str, Any]) -> str:
    name = f"largest difference of the {what}"
    return f"  {name:<36} {result[name]:.1e}"


TOLD = {"lewm": _lewm_told, "default": _default_told, "cache": _cache_told, "environments": _environments_told}
