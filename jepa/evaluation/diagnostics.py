"""What the forecasts of a world model are worth: errors by horizon, the ranking of actions, plans against recordings.

Pure functions of latents and actions. What happened is always row by row: one row is one window of an episode, and
intervals are over episodes, since windows of one episode are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.evaluation.floors import RandomPolicy
from jepa.evaluation.statistics import bootstrap
from jepa.schema import ActionSpec, Sample

STILL = 1e-12  # added to errors whose ratio is taken: one where nothing moves and the forecast says so
TIED = 1e-6  # errors whose relative difference is below were made by rounding


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes with the ends of its 95 % interval (bootstrap over the episodes)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Tensor, episode: Tensor) -> Estimate:
    """Of ``values [n]`` whose rows are of these episodes ``[n]``: every episode counts alike."""
    mean = per_episode(values, episode)
    return Estimate(float(mean.mean()), *bootstrap(mean.numpy()))


def estimates(values: Tensor, episode: Tensor) -> list[Estimate]:
    """Of every column of ``values [n,H]``."""
    return [estimate(column, episode) for column in values.unbind(1)]


def gains(error: Tensor, copy: Tensor, episode: Tensor, draws: int = 2000, seed: int = 0) -> list[Estimate]:
    """1 - error / copy for every column of two ``[n,H]``: as :func:`jepa.metrics.prediction_gain`, over episodes."""
    error, copy = (torch.stack([per_episode(column, episode) for column in part.unbind(1)]) for part in (error, copy))
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(0, error.shape[1], size=(draws, error.shape[1])))
    found = []
    for mine, theirs in zip(error + STILL, copy + STILL):
        ratio = 1 - mine[drawn].mean(1) / theirs[drawn].mean(1)
        low, high = ratio.quantile(torch.tensor([0.025, 0.975], dtype=ratio.dtype)).tolist()
        found.append(Estimate(float(1 - mine.mean() / theirs.mean()), low, high))
    return found


def per_episode(values: Tensor, episode: Tensor) -> Tensor:
    """Means ``[E]`` of ``values [n]`` over the rows of each episode, float64."""
    _, place = episode.unique(return_inverse=True)
    total = torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add_(0, place, values.double())
    return total / place.bincount()


def forecast_error(forecast: Tensor, h: Tensor) -> Tensor:
    """Mean squared difference over tokens and dimensions: forecasts [B,S,H,N,D], what came [B,H,N,D] -> [B,S,H]."""
    return (forecast - h.unsqueeze(1)).square().mean((-2, -1))


def ranks(error: Tensor) -> tuple[Tensor, Tensor]:
    """Is the first of S candidates the best? Errors [n,S,H] -> its top-1 and reciprocal rank, [n,H] each.

    Both are expectations over a random order of what is tied, so that a model that does not look at the action is at
    chance (:func:`chance`) and not at the top.
    """
    first, others = error[:, :1].double(), error[:, 1:].double()
    margin = TIED * first.abs()
    before = (others < first - margin).sum(1)
    tied = ((others - first).abs() <= margin).sum(1) + 1
    harmonic = (1 / torch.arange(1, error.shape[1] + 1, dtype=torch.float64)).cumsum(0)
    harmonic = F.pad(harmonic, (1, 0))
    return (before == 0) / tied, (harmonic[before + tied] - harmonic[before]) / tied


def chance(candidates: int) -> tuple[float, float]:
    """Top-1 and mean reciprocal rank of a blind choice among so many."""
    return 1 / candidates, sum(1 / rank for rank in range(1, candidates + 1)) / candidates


def recorded_plans(action: Tensor, episode: Tensor, count: int, seed: int = 0) -> Tensor:
    """For each of the recorded plans [n,H,A] of these episodes [n], ``count`` of other episodes: [n,count,H,A].

    Of other times of the same episode, where there is only one episode.
    """
    if len(action) < 2:
        raise InputError(f"{len(action)} window of recorded actions: expected at least 2 to compare, use more windows")
    random, numbers = np.random.default_rng(seed), np.arange(len(action))
    rows = []
    for number, mine in enumerate(episode.tolist()):
        others = np.flatnonzero(episode.numpy() != mine)
        others = others if len(others) else numbers[numbers != number]
        rows.append(random.choice(others, count, replace=len(others) < count))
    return action[torch.from_numpy(np.stack(rows))]


def random_plans(space: ActionSpec, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Plans [*shape,A] of a policy that knows nothing: uniform within the bounds, or any of the choices."""
    count = math.prod(shape) * space.block
    action = RandomPolicy(space, seed).act(Sample(video=torch.empty(count, 0)))
    return action.reshape(*shape, space.width)


@dataclass(frozen=True)
class Grid:
    """Plans that differ in two dimensions of the environment's action, which are held over the horizon."""

    x: list[float]  # [G] raw values of the first dimension
    y: list[float]  # [G] of the second
    plans: Tensor  # [G*G,H,A] raw; y slowest
    recorded: tuple[float, float]  # means of the recorded plan in the two dimensions


def grid_plans(space: ActionSpec, recorded: Tensor, dimensions: Sequence[int], points: int = 21) -> Grid:
    """Around a recorded plan [H,A]: two dimensions take ``points`` values each, the others stay as recorded.

    Values lie evenly within the bounds; where one is infinite, within three standard deviations of the mean.

    Raises:
        InputError: no such dimensions, or actions that are choices, between which there is nothing
    """
    if space.choices:
        raise InputError(f"the action is one of {space.choices} choices, not a plane; expected continuous actions")
    first, second = dimensions
    known = range(space.env_width)
    if first not in known or second not in known or first == second:
        raise InputError(f"dimensions {first}, {second} of the action: expected two of 0 to {space.env_width - 1}")
    axes = [_values(space, number, points) for number in (first, second)]
    y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    steps = recorded.unflatten(-1, (space.block, space.env_width))
    plans = steps.repeat(points * points, 1, 1, 1)
    plans[..., first], plans[..., second] = x.reshape(-1, 1, 1), y.reshape(-1, 1, 1)
    mean = steps.mean((0, 1))
    mark = (float(mean[first]), float(mean[second]))
    return Grid(axes[0].tolist(), axes[1].tolist(), plans.flatten(-2), mark)


def _values(space: ActionSpec, number: int, points: int) -> Tensor:
    low, high, mean, std = (part[number] for part in (space.low, space.high, space.mean, space.std))
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = max(low, mean - 3 * std), min(high, mean + 3 * std)
    return torch.linspace(low, high, points)


def action_errors(planned: Tensor, recorded: Tensor, space: ActionSpec) -> dict[str, Tensor]:
    """How far plans [n,H,A] are from what was recorded, each [n], in normalised actions (units of their deviation).

    ``first``: mean absolute error of the first action. ``mean``: the same of the action averaged over the horizon,
    since many orders of the same moves lead to one goal. ``first_cosine``, ``mean_cosine``: cosine of the angle
    between the two, NaN where one of them is the mean action of the training data.
    """
    planned, recorded = space.normalise(planned), space.normalise(recorded)
    found = {}
    for name, (mine, theirs) in {
        "first": (planned[:, 0], recorded[:, 0]),
        "mean": tuple(part.unflatten(-1, (space.block, -1)).mean((1, 2)) for part in (planned, recorded)),
    }.items():
        found[name] = (mine - theirs).abs().mean(-1)
        length = mine.norm(dim=-1) * theirs.norm(dim=-1)
        found[f"{name}_cosine"] = torch.where(length > TIED, (mine * theirs).sum(-1) / length, torch.nan)
    return found
