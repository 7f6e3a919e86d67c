"""Synthetic episodes whose pixels, actions, proprioception and states tell their own place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jepa.data.hdf5 import Hdf5Writer
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Specs

SPECS = Specs(
    ActionSpec((-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 1.0)),
    ObservationSpec(6, 8, 3, (0.0, 0.0), (1.0, 1.0), ("x", "y")),
    EvalSpec("jepa/TwoRooms-v0", {"size": 64}, protocol="two_rooms/v1"),
)


def coded(number: int, frames: int) -> dict[str, np.ndarray]:
    """Frame t of episode e: red e, green t; action (e, t); proprio (-t, 7); state (e, t); reward t; ends at the end."""
    time = np.arange(frames, dtype=np.float32)
    video = np.zeros((frames, 3, 6, 8), np.uint8)
    video[:, 0], video[:, 1] = number, np.arange(frames)[:, None, None]
    video[:, 2] = np.arange(48, dtype=np.uint8).reshape(6, 8)
    owner = np.full(frames, number, np.float32)
    return {
        "video": video,
        "action": np.stack([owner, time], axis=1)[:-1],
        "proprio": np.stack([-time, np.full(frames, 7.0, np.float32)], axis=1),
        "state": np.stack([owner, time], axis=1),
        "reward": time[:-1],
        "terminated": time[:-1] == frames - 2,
    }


def write(path: Path, lengths: list[int]) -> Path:
    with Hdf5Writer(path, SPECS) as writer:
        for number, frames in enumerate(lengths):
            writer.append(**coded(number, frames))
    return path
