"""The columns of a store of episodes: what they may hold, whatever the file format is.

Columns are flat over all steps. ``length`` and ``offset`` (int64 [E]) say which rows are whose. A column is anything
that slices into rows: an array or a dataset on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.statistics import moments
from jepa.errors import InputError
from jepa.schema import Specs

NAMES = ("video", "action", "proprio", "state", "reward", "terminated")
STEPS = ("action", "reward", "terminated")  # lead to the next frame: an episode's last row is padding
SCAN = 1 << 16  # rows that are looked at together


def episode_rows(given: Mapping[str, Any], specs: Specs, number: int) -> dict[str, np.ndarray]:
    """One episode as it is stored: the fields of :class:`jepa.schema.Sample` -> rows, one per frame.

    video uint8 [T,C,H,W] -> [T,H,W,C]; action, reward and terminated of T-1 rows get their padding row (NaN for floats,
    false for ``terminated``); of T rows, the last one is replaced by it.

    Raises:
        InputError: something differs from ``specs``, or is NaN or infinite. Names the episode.
    """
    widths = _widths(specs)
    arrays = {name: np.asarray(values) for name, values in given.items() if values is not None}
    if missing := [name for name in ("video", *(n for n, w in widths.items() if w)) if name not in arrays]:
        raise InputError(f"episode {number} has no {missing[0]}, which the specs promise; pass it")
    rows = {"video": _frames(arrays["video"], specs, number)}
    for name in NAMES[1:]:
        if name in arrays:
            rows[name] = _column(name, arrays[name], len(rows["video"]), widths.get(name), number)
    return rows


def _widths(specs: Specs) -> dict[str, int]:
    seen = specs.observation
    return {"action": specs.action.env_width, "proprio": len(seen.proprio_mean), "state": len(seen.state_names)}


def _frames(video: np.ndarray, specs: Specs, number: int) -> np.ndarray:
    seen = specs.observation
    expected = (seen.channels, seen.height, seen.width)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != expected or not len(video):
        raise InputError(
            f"video of episode {number} is {video.dtype} {list(video.shape)}, expected uint8 [T,C,H,W] with "
            f"[C,H,W] = {list(expected)}"
        )
    return np.ascontiguousarray(video.transpose(0, 2, 3, 1))


def _column(name: str, values: np.ndarray, frames: int, width: int | None, number: int) -> np.ndarray:
    """``width`` None: one number per row."""
    counts = (frames - 1, frames) if name in STEPS else (frames,)
    shape = () if width is None else (width,)
    if len(values) not in counts or values.shape[1:] != shape:
        raise InputError(
            f"{name} of episode {number} is {list(values.shape)}, expected {[counts[0], *shape]} for {frames} frames"
        )
    kind = np.dtype(bool if name == "terminated" else np.float32)
    kept = values[: counts[0]].astype(kind)
    if not np.isfinite(kept).all():
        step = int(np.argwhere(~np.isfinite(kept))[0][0])
        raise InputError(f"{name} of episode {number}, step {step} is NaN or infinite; expected finite numbers")
    padding = np.zeros((frames - len(kept), *shape), kind) if kind == bool else np.full(
        (frames - len(kept), *shape), np.nan, kind
    )  # fmt: skip
    return np.concatenate([kept, padding])


def check_finite(name: str, table: Any, length: np.ndarray, offset: np.ndarray, path: Path) -> None:
    """Raise InputError that names the first episode and step of a column with NaN or infinite numbers."""
    for start, block, kept in _kept(name, table, length, offset):
        bad = ~np.isfinite(block).reshape(len(block), -1).all(axis=1) & kept
        if bad.any():
            row = start + int(bad.argmax())
            owner = int(np.flatnonzero((offset <= row) & (row < offset + length))[0])
            raise InputError(
                f"{path}: {name} of episode {owner}, step {row - offset[owner]} is NaN or infinite; expected finite "
                "numbers, repair or drop that episode"
            )


def measured(specs: Specs, tables: Mapping[str, Any], length: np.ndarray, offset: np.ndarray) -> Specs:
    """The specs with the mean and standard deviation of the action and proprioception over all episodes."""

    def over(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        table = tables[name]
        blocks = (block[kept].reshape(int(kept.sum()), -1) for _, block, kept in _kept(name, table, length, offset))
        return moments(blocks, width(table))

    mean, std = over("action")
    specs = replace(specs, action=replace(specs.action, mean=mean, std=std))
    if "proprio" in tables:
        mean, std = over("proprio")
        specs = replace(specs, observation=replace(specs.observation, proprio_mean=mean, proprio_std=std))
    return specs


def width(table: Any) -> int:
    """Numbers per row of a column [F] or [F,n]."""
    return int(np.prod(table.shape[1:], dtype=np.int64))


def _kept(name: str, table: Any, length: np.ndarray, offset: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First row, rows and which of them count (within an episode, not padding), a block at a time."""
    counts = np.zeros(len(table) + 1, np.int64)
    np.add.at(counts, offset, 1)
    np.add.at(counts, offset + length - (name in STEPS), -1)
    inside = counts.cumsum() > 0
    for start in range(0, len(table), SCAN):
        block = np.asarray(table[start : start + SCAN])
        yield start, block, inside[start : start + len(block)]
