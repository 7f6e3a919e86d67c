"""The verb ``jepa inspect world``: are the forecasts of a world model worth planning with?"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa.checkpoints.load import load
from jepa.data.clips import Clips, split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.errors import InputError
from jepa.evaluation.diagnostics import chance
from jepa.files import write_atomically
from jepa.models.world import WorldModel
from jepa.planning import CEM, CategoricalCEM, Cost, GoalLatent, check_members, check_specs
from jepa.retrieval import FrameIndex
from jepa.schema import Planner, Sample, plain
from jepa.tasks import world_checks as checks
from jepa.tasks.inspect_video import table
from jepa.tasks.judging import describe
from jepa.tasks.latents import on_device
from jepa.tasks.storyboards import Board, retrieve
from jepa.tasks.world_checks import HeldOut
from jepa.tasks.world_page import write_page
from jepa.tasks.world_windows import Watch

log = logging.getLogger(__name__)

REAL_FRAMES = 2000  # of the training episodes, among which storyboards search
CALM = 10  # validation steps that surprise is calibrated on, for every test window


class Inspection(dict[str, Any]):
    """All numbers of a world, ready for JSON; as text, a table."""

    def __str__(self) -> str:
        last, one = self["horizon"] - 1, self["rollout"]["model"]
        facts: dict[str, Any] = {"test windows": f"{self['windows']} of {self['episodes']} episodes"}
        for step in dict.fromkeys((0, last)):
            error, other = (self["rollout"][name]["error"][step] for name in ("model", "untrained"))
            facts[f"error at step {step + 1}"] = f"{_read(error)}, copy {_read(one['copy'][step])}"
            facts[f"  gain at step {step + 1}"] = f"{_read(one['gain'][step])}, untrained error {_read(other)}"
        for among, found in self["ranking"]["model"].items():
            blind = self["ranking"]["untrained"][among]["top1"][last]
            facts[f"top-1 among {among}"] = (
                f"{_read(found['top1'][last])} at step {last + 1}, MRR {_read(found['reciprocal_rank'][last])}; "
                f"untrained {_read(blind)}, chance {self['ranking']['chance']['top1']:.3f}"
            )
        surprise = self["surprise"]
        alarms = {name: _read(surprise[name]["false_alarms"]) for name in ("model", "untrained")}
        facts["false alarms"] = f"{alarms['model']}, asked for {self['rate']:g}; untrained {alarms['untrained']}"
        for kind, found in surprise["model"]["violations"].items():
            blind = surprise["untrained"]["violations"][kind]
            facts[kind] = f"AUC {_read(found['auc'])}, detected {_read(found['detected'])}, {found['clips']} clips"
            facts[f"  {kind}, untrained"] = f"AUC {_read(blind['auc'])}, detected {_read(blind['detected'])}"
        for name, found in self["actions"].items():
            facts[f"action error, {name.replace('_', ' ')}"] = (
                f"first {_read(found['first'])}, cosine {_read(found['first_cosine'])}; "
                f"over the plan {_read(found['mean'])}, cosine {_read(found['mean_cosine'])}"
            )
        return table(f"world {self['checkpoint']}", facts | self["written"])


def _read(part: dict[str, float] | None) -> str:
    return "none" if part is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**part)


def inspect_world(
    checkpoint: Path,
    data: Path,
    out: Path,
    horizon: int = 8,
    planner: Planner | None = None,
    cost: Cost | None = None,
    windows: int = 200,
    candidates: int = 15,
    rate: float = 0.01,
    dimensions: list[tuple[int, int]] | None = None,
    starts: int = 3,
    points: int = 21,
    parts: tuple[float, float, float] = (0.9, 0.05, 0.05),
    split_seed: int = 0,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 32,
    chunk: int = 64,
) -> Inspection:
    """Say what the forecasts of a world model are worth, on episodes that it was not trained on.

    Rollout error by horizon, ranking of actions and surprise at violations, beside those of the model before its
    training and of doing nothing or of chance; plans against recorded actions; energy landscapes and storyboards.

    Args:
        checkpoint: that ``jepa fit`` wrote.
        data: the episodes (.h5) that it was trained on; only held-out ones are measured.
        out: folder for world.json, world.html and the figures.
        horizon: model steps of a rollout and of a plan, at least 2.
        planner: what plans are searched with; by default jepa.planning.CEM, of discrete actions CategoricalCEM.
        cost: what plans are searched for; jepa.planning.GoalLatent by default.
        windows: of the test episodes, spread evenly; surprise is calibrated on ten times as many validation steps.
        candidates: other plans of each kind that the recorded one is ranked among.
        rate: of false alarms, that the threshold of surprise is set to on the validation episodes.
        dimensions: pairs of action dimensions for the energy landscapes; the first pairs by default.
        starts: windows that landscapes and storyboards show.
        points: values of each dimension of a landscape.
        parts: train, validation and test parts of the episodes, as they were in training.
        split_seed: of that split, as it was in training.
        seed: of random plans, violations and the planner's noise.
        device: where the world runs, e.g. cuda.
        batch: windows at once.
        chunk: candidate plans at once, for each window.

    Raises:
        InputError: no world model, data of another kind, or too few episodes held out.
    """
    _check({"windows": windows, "candidates": candidates, "starts": starts, "batch": batch, "chunk": chunk})
    if horizon < 2 or points < 2:
        raise InputError(f"horizon={horizon}, points={points}: expected at least 2 of each")
    watches = _watches(checkpoint, device, batch, chunk)
    model, store = watches["model"], Hdf5Episodes(data)
    check_specs(model.world.specs, store.specs)
    space = store.specs.action
    planner, cost = planner or (CategoricalCEM() if space.choices else CEM()), (cost or GoalLatent()).to(device)
    check_members(model.world, cost)
    train, held = _held_out(store, model, horizon, windows, parts, split_seed)
    planes = [] if space.choices else checks.pairs(space.env_width)
    shown = np.unique(np.linspace(0, len(held.test.video) - 1, starts + 2).round().astype(int)[1:-1]).tolist()
    landscapes = checks.landscapes(model, cost, held, shown, dimensions or planes, points)
    surprise = checks.surprises(watches, held, rate, seed)
    rollout, ranking, units = checks.forecasts(watches, held, candidates, seed)
    ranking["chance"] = dict(zip(("top1", "reciprocal_rank"), chance(1 + candidates)))
    plans = checks.planned(model, planner, cost, held, seed)
    found = {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "horizon": horizon,
        "history": model.history,
        "frame_skip": held.block,
        "windows": len(held.test.video),
        "episodes": len(held.episode.unique()),
        "candidates": candidates,
        "rate": rate,
        "planner": describe(planner),
        "cost": describe(cost),
        "units": units,
        "rollout": rollout,
        "ranking": ranking,
        "surprise": surprise,
        "actions": checks.actions(plans, model, held, seed),
        "landscapes": landscapes,
    }
    boards = _boards(model, held, train, plans, shown)
    written = write_page(out, found, boards)
    told = plain(found)
    text = json.dumps(told, indent=1, allow_nan=False)
    write_atomically(out / "world.json", lambda file: file.write(text.encode()))
    return Inspection(told | {"written": {"numbers": str(out / "world.json"), "page": str(written)}})


def _check(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name}={count}: expected at least 1")


def _watches(checkpoint: Path, device: str, batch: int, chunk: int) -> dict[str, Watch]:
    """The model, and the same before its training."""
    found = {}
    for name in ("model", "untrained"):
        world = load(str(checkpoint), untrained=name == "untrained")
        if not isinstance(world, WorldModel):
            kind = type(world).__name__
            raise InputError(f"{checkpoint} holds a {kind}, which is given no actions: name one of a WorldModel")
        found[name] = Watch(on_device(world, device), world.specs.evaluation.history, device, batch, chunk)
    return found


def _held_out(
    store: Hdf5Episodes,
    model: Watch,
    horizon: int,
    windows: int,
    parts: tuple[float, float, float],
    split_seed: int,
) -> tuple[list[int], HeldOut]:
    """Numbers of the training episodes, and windows of the others."""
    train, val, test = split(store, parts, split_seed)
    if not val or not test:
        raise InputError(
            f"parts={list(parts)} of {len(store)} episodes leave none for validation or for the test: "
            "expected three parts above 0, as in training"
        )
    block = model.world.specs.action.block
    some, calm = (
        Clips(store, numbers, model.history + steps, block) for numbers, steps in ((test, horizon), (val, 1))
    )
    return train, HeldOut(store, _some(some, windows), _some(calm, CALM * windows), block)


def _some(clips: Clips, count: int) -> Sample:
    """Windows spread evenly."""
    return clips.__getitems__(np.linspace(0, len(clips) - 1, min(count, len(clips))).round().astype(int).tolist())


def _boards(model: Watch, held: HeldOut, train: Sequence[int], plans: torch.Tensor, rows: Sequence[int]) -> list[Board]:
    """What happened, what the model imagined of it, and what it imagines of its own plan to the same end."""
    store, frames = held.episodes, Clips(held.episodes, train, frames=1)
    real = _some(frames, REAL_FRAMES)
    index = FrameIndex().add(model.latents(real)[:, 0], real.index)
    boards = []
    for row in rows:
        sample = Sample(video=held.test.video, action=held.test.action, proprio=held.test.proprio)
        sample = sample.map(lambda part: part[row : row + 1]).to(model.device)
        plan = torch.stack([sample.action[0, model.history - 1 :], plans[row].to(model.device)])
        with torch.inference_mode():
            dreams = model.forecasts(model.see(sample).z, sample, plan.unsqueeze(0))[0].cpu()
        found = dict(zip(("imagined of\nthe recorded actions", "imagined of\nthe plan"), dreams))
        found = {name: retrieve(index, store, dream) for name, dream in found.items()}
        steps = {"what happened": held.test.video[row, model.history :]}
        captions = {"what happened": [f"+{step + 1}" for step in range(len(plan[0]))]}
        captions |= {name: [f"{value:.2f}" for value in dream.distance] for name, dream in found.items()}
        episode, first = held.test.index[row].tolist()
        title = f"Episode {episode} from frame {first}; below imagined frames: latent distance to the frame shown"
        boards.append(Board(title, steps | {name: dream.video for name, dream in found.items()}, captions))
    return boards
