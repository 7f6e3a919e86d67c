"""The pictures of the demo: curves, a map of the latents, storyboards of the dream, trajectories over the rooms."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jepa.checkpoints import load
from jepa.data.clips import Clips, split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.models.world import WorldModel
from jepa.retrieval import FrameIndex
from jepa.tasks.storyboards import retrieve
from probes.cache import FeatureCache
from tools.report import Curve, Diagram, Figures, LatentMap, Panel, Room, Storyboard, Trajectory

DOOR = 0.12  # half-width of the door of Two Rooms
RADIUS = 0.06  # success is within this of the goal
STEPS = 8  # model steps of a dream
BOARDS = 4

COLLAPSE = {
    "rankme": Panel("RankMe", (), note="effective dimensions of the latents; falls when they collapse"),
    "std": Panel("Spread", (), note="standard deviation of the latents over the batch, mean over dimensions"),
    "std_time": Panel("Spread over time", (), note="within a trajectory: what moves, not the background"),
    "gain": Panel("Gain", (), note="1 is a perfect forecast", reference=0.0, reference_name="nothing changes"),
}
DIAGNOSTICS = {  # figure of `jepa inspect world` -> what it shows
    "rollout": "Open-loop rollout error by horizon",
    "ranking": "Share of windows whose true actions forecast best",
    "surprise_model": "Surprise at violations of expectation",
    "landscapes": "Energy of two action dimensions",
}
PARTS = (("train", "training"), ("val", "validation"))


def draw(run: Path, data: Path) -> Figures:
    """All figures of a finished demo in the folder ``run``."""
    rows = _metrics(run)
    episodes = Hdf5Episodes(data)
    features = FeatureCache(run / "features")
    return Figures(
        curves=[*_objectives(rows), *_collapse(rows)],
        latents=_latents(features, FeatureCache(run / "features_untrained")),
        storyboards=_storyboards(load(str(run / "last.ckpt")), episodes, features),
        diagnostics=_diagnostics(run / "world"),
        trajectories=_trajectories(run / "plan/trajectories.npz"),
    )


def frames_per_second(run: Path) -> float | None:
    """Median over the training."""
    _, values = _series(_metrics(run), "throughput/frames_per_second")
    return float(np.median(values)) if len(values) else None


def room(wall: float, door: float) -> Room:
    """Two Rooms, seen from above; y points down as in its pictures."""
    walls = ((wall, 0.0, wall, door - DOOR), (wall, door + DOOR, wall, 1.0))
    walls += ((0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))
    return Room(walls=walls)


def _metrics(run: Path) -> list[dict[str, str]]:
    log = run / "logs/metrics.csv"
    if not log.is_file():  # the run was shorter than the interval of the log
        return []
    with log.open() as file:
        return list(csv.DictReader(file))


def _series(rows: list[dict[str, str]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    steps, values = zip(*points) if points else ((), ())
    return np.array(steps), np.array(values)


def _objectives(rows: list[dict[str, str]]) -> list[Panel]:
    names = sorted({key.removeprefix("train/") for row in rows[:1] for key in row if key.startswith("train/")})
    names.sort(key=lambda name: name != "loss")
    return [
        Panel(name, [Curve(kind, *_series(rows, f"{part}/{name}")) for part, kind in PARTS], group="objectives")
        for name in names
    ]


def _collapse(rows: list[dict[str, str]]) -> list[Panel]:
    return [
        replace(
            panel,
            curves=[Curve("training", *_series(rows, f"collapse/{name}"))],
            group="collapse watch",
            log=False,
        )
        for name, panel in COLLAPSE.items()
    ]


def _latents(trained: FeatureCache, untrained: FeatureCache) -> LatentMap:
    sets = [cache.examples("test", "x,y,wall_x,door_y") for cache in (trained, untrained)]
    z = [torch.stack([part[i][0] for i in range(len(part))]).flatten(1).numpy() for part in sets]
    y = sets[0].y.numpy()
    return LatentMap.from_latents(z[0], y[:, :2], z[1], room(*y[0, 2:4]))


def _storyboards(world: WorldModel, episodes: Hdf5Episodes, features: FeatureCache) -> list[Storyboard]:
    rows, ids = features.frames("train")
    index = FrameIndex().add(torch.from_numpy(np.array(features.features[rows])).float(), torch.from_numpy(ids))
    clips = Clips(episodes, split(episodes)[2], STEPS + 1, world.specs.action.block)
    chosen = np.linspace(0, len(clips) - 1, BOARDS + 2).astype(int)[1:-1].tolist()
    return [_storyboard(world, episodes, index, clips, number) for number in chosen]


@torch.inference_mode()
def _storyboard(
    world: WorldModel, episodes: Hdf5Episodes, index: FrameIndex, clips: Clips, number: int
) -> Storyboard:
    sample = clips[number]
    batch = sample.map(lambda tensor: tensor.unsqueeze(0))
    seen = world.encoder(batch.video[:, :1])
    dream = world.rollout(seen, batch.action.unsqueeze(1))[0, 0]  # [H,N,D]
    found = retrieve(index, episodes, dream)
    episode, first = sample.index.tolist()
    return Storyboard(
        title=f"Episode {episode}, from frame {first}",
        real=sample.video[1:].numpy(),
        imagined=found.video.numpy(),
        distance=found.distance,
        steps=list(range(1, STEPS + 1)),
        position_error=(found.state[:, :2] - sample.state[1:, :2]).norm(dim=1).tolist(),
        unit="room widths",
    )


def _diagnostics(folder: Path) -> list[Diagram]:
    """What ``jepa inspect world`` drew."""
    drawn = [Diagram(title, (folder / f"{name}.svg").read_bytes()) for name, title in DIAGNOSTICS.items()]
    boards = (folder / "storyboards.png").read_bytes()
    return [*drawn, Diagram("What happened, and what the model imagines of its plan", boards, "png")]


def _trajectories(path: Path) -> list[Trajectory]:
    with np.load(path, allow_pickle=False) as saved:
        state, goal, steps = saved["state"], saved["goal"], saved["steps"]
    drawn = []
    for pair, (states, target, solved) in enumerate(zip(state, goal, steps.tolist())):
        walked = states[~np.isnan(states[:, 0])]
        drawn.append(
            Trajectory(
                name=f"pair {pair + 1}",
                path=walked[:, :2],
                goal=target[:2],
                success=solved >= 0,
                steps=solved if solved >= 0 else len(walked) - 1,
                room=room(*walked[0, 2:4].tolist()),
                radius=RADIUS,
            )
        )
    return drawn
