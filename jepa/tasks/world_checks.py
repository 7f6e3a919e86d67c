"""The five checks of ``jepa inspect world``: each takes a world over held-out windows and returns plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.evaluation import diagnostics as measure
from jepa.evaluation import diagnostics_surprise as probing
from jepa.evaluation.diagnostics import Estimate
from jepa.evaluation.diagnostics_figures import Landscape
from jepa.evaluation.recorded import blind_plans, known
from jepa.planning import Cost, imagined
from jepa.schema import Episodes, Planner, Problem, Sample
from jepa.tasks.world_windows import Errors, Watch

SHOWN_PAIRS = 6  # of dimensions, where none are asked for


@dataclass(frozen=True)
class HeldOut:
    """Windows of history + H frames."""

    episodes: Episodes
    test: Sample  # [n,...], of the test episodes
    calm: Sample  # history + 1 frames each, of the validation episodes: what surprise is calibrated on
    block: int  # environment steps of a model step

    @property
    def episode(self) -> Tensor:
        """[n]"""
        return self.test.index[:, 0]


def forecasts(
    watches: Mapping[str, Watch], held: HeldOut, count: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Rollout error by horizon and the ranking of the recorded actions, of each world, and the units of their errors.

    The recorded plan is ranked among ``count`` others that were recorded elsewhere, and among as many random ones.
    """
    space = next(iter(watches.values())).world.specs.action
    steps = held.test.video.shape[1] - next(iter(watches.values())).history
    recorded = measure.recorded_plans(held.test.action[:, -steps:], held.episode, count, seed)
    others = torch.cat([recorded, measure.random_plans(space, (len(recorded), count, steps), seed)], dim=1)
    rollout, ranking, units = {}, {}, {}
    for name, watch in watches.items():
        errors = watch.errors(held.test, others)
        rollout[name], ranking[name] = _rollout(errors, held.episode), _ranking(errors, held.episode, count)
        units[name] = errors.unit
    return rollout, ranking, units


def _rollout(errors: Errors, episode: Tensor) -> dict[str, list[Estimate]]:
    model = errors.plans[:, 0]
    return {
        "error": measure.estimates(model, episode),
        "copy": measure.estimates(errors.copy, episode),
        "gain": measure.gains(model, errors.copy, episode),
    }


def _ranking(errors: Errors, episode: Tensor, count: int) -> dict[str, dict[str, list[Estimate]]]:
    among = {"recorded": errors.plans[:, : 1 + count], "random": errors.plans[:, [0, *range(1 + count, 1 + 2 * count)]]}
    found = {}
    for name, candidates in among.items():
        top, reciprocal = measure.ranks(candidates)
        found[name] = {
            "top1": measure.estimates(top, episode),
            "reciprocal_rank": measure.estimates(reciprocal, episode),
        }
    return found


def surprises(watches: Mapping[str, Watch], held: HeldOut, rate: float, seed: int) -> dict[str, Any]:
    """How well one-step forecast errors tell clips with a violation from those as they were, for each world.

    The threshold is that of the validation episodes; rate of false alarms and detections are of the test episodes.
    """
    history = next(iter(watches.values())).history
    at = (held.test.video.shape[1] - history) // 2  # entry of the violated step
    clips = {"untouched": held.test} | violations(held, history + at, seed)
    before = held.test.video[:, history + at]
    # where nothing moves, nothing takes another colour
    changed = {kind: (part.video[:, history + at] != before).flatten(1).any(1) for kind, part in clips.items()}
    found = {"violated_step": at}

    def told(kind: str, values: Tensor) -> Estimate | None:
        return known(torch.where(changed[kind], values, torch.nan), held.episode)

    for name, watch in watches.items():
        limit = probing.threshold(watch.surprise(held.calm).flatten(), rate)
        series = {kind: watch.surprise(windows) for kind, windows in clips.items()}
        untouched = series["untouched"]
        unit = float(untouched.median()) or 1.0  # of a world that is never wrong
        found[name] = {
            "threshold": limit / unit,
            "unit": unit,
            "false_alarms": measure.estimate((untouched > limit).double().mean(1), held.episode),
            "curves": {kind: measure.estimates(values / unit, held.episode) for kind, values in series.items()},
            "violations": {
                kind: {
                    "clips": int(changed[kind].sum()),
                    "auc": told(kind, probing.exceedance(values[:, at], untouched[:, at])),
                    "detected": told(kind, (values[:, at] > limit).double()),
                }
                for kind, values in series.items()
                if kind != "untouched"
            },
        }
    return found


def violations(held: HeldOut, frame: int, seed: int = 0) -> dict[str, Sample]:
    """The test windows with a violation in their pixels from a frame on; actions stay as they were.

    ``teleported``: the scene jumps to another time of its episode and goes on from there. ``recoloured``: what moves
    takes another hue.
    """
    teleported, coloured = held.test.video.clone(), held.test.video.clone()
    random = torch.Generator().manual_seed(seed)
    for row, (episode, first) in enumerate(held.test.index.tolist()):
        whole = held.episodes.read(episode, np.arange(held.episodes.length(episode)), ("video",)).video
        coloured[row, frame:] = probing.recoloured(coloured[row, frame:], probing.background(whole))
        target = probing.elsewhere(whole, first + frame * held.block, random)
        later = target + held.block * np.arange(teleported.shape[1] - frame)
        teleported[row, frame:] = whole[later.clip(max=len(whole) - 1)]
    return {"teleported": replace(held.test, video=teleported), "recoloured": replace(held.test, video=coloured)}


def asked(watch: Watch, cost: Cost, sample: Sample, generator: torch.Generator | None = None) -> Problem:
    """To get from the start of windows to their last frames, as a planner is asked; ``sample``: one batch."""
    with torch.no_grad():
        seen = Sample(video=sample.video, proprio=sample.proprio)
        z = watch.world.encode(seen.map(lambda part: part[:, : watch.history]))
        goal = watch.world.encode(seen.map(lambda part: part[:, -1:]))
    past = sample.action[:, : watch.history - 1] if watch.history > 1 else None
    proprio = watch.poses(sample)
    horizon = sample.video.shape[1] - watch.history
    return imagined(watch.world, cost, z, goal, past, horizon, watch.chunk, watch.device, generator, proprio)


@torch.no_grad()
def landscapes(
    watch: Watch, cost: Cost, held: HeldOut, rows: Sequence[int], dimensions: Sequence[tuple[int, int]], points: int
) -> list[Landscape]:
    """The cost of reaching the end of some windows, over each pair of dimensions of the action."""
    space = watch.world.specs.action
    found = []
    for row in rows:
        sample = Sample(video=held.test.video, action=held.test.action, proprio=held.test.proprio)
        sample = sample.map(lambda part: part[row : row + 1]).to(watch.device)
        price = asked(watch, cost, sample).cost
        episode, first = held.test.index[row].tolist()
        for pair in dimensions:
            grid = measure.grid_plans(space, sample.action[0, watch.history - 1 :], pair, points)
            values = price(grid.plans.unsqueeze(0))[0].cpu().reshape(points, points).double().numpy()
            names = (f"action {pair[0]}", f"action {pair[1]}")
            found.append(Landscape(f"Episode {episode}, frame {first}", grid.x, grid.y, values, grid.recorded, names))
    return found


def pairs(width: int) -> list[tuple[int, int]]:
    """The first pairs of dimensions of an action."""
    return list(combinations(range(width), 2))[:SHOWN_PAIRS]


def planned(watch: Watch, planner: Planner, cost: Cost, held: HeldOut, seed: int) -> Tensor:
    """Plans [n,H,A] from the start of every window to its last frame."""
    generator = torch.Generator(watch.device).manual_seed(seed)
    plans = [
        planner.plan(asked(watch, cost, sample, generator)).action.detach().cpu()
        for _, sample in watch.batches(held.test)
    ]
    return torch.cat(plans)


def actions(plans: Tensor, watch: Watch, held: HeldOut, seed: int) -> dict[str, dict[str, Estimate | None]]:
    """Errors of the plans [n,H,A] against what was recorded, beside those of the mean action and of random plans."""
    space, recorded = watch.world.specs.action, held.test.action[:, watch.history - 1 :]
    told = {"plan": plans} | blind_plans(recorded, space, seed)
    return {
        name: {
            kind: known(values, held.episode) for kind, values in measure.action_errors(mine, recorded, space).items()
        }
        for name, mine in told.items()
    }
