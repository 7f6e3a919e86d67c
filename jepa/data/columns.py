"""The columns of a store of episodes: what they may hold, whatever the file format is.

Columns are flat over all steps. ``length`` and ``offset`` (int64 [E]) say which rows are whose. A column is anything
that slices into rows: an array or a dataset on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data.statistics import moments
from jepa.errors import InputError
from jepa.schema import ActionSpec, ObservationSpec, Specs

TYPES = {  # kinds of numpy types, numbers of axes, in words
    "video": ("u", (4,), "uint8 [F,H,W,C]"),
    "action": ("f", (2,), "float [F,a]"),
    "proprio": ("f", (2,), "float [F,P]"),
    "state": ("f", (2,), "float [F,X]"),
    "reward": ("f", (1, 2), "float [F]"),
    "terminated": ("bui", (1, 2), "bool [F]"),
}
NAMES = tuple(TYPES)
STEPS = ("action", "reward", "terminated")  # lead to the next frame: an episode's last row is padding
SCAN = 1 << 16  # rows that are looked at together


def episode_rows(given: Mapping[str, Any], specs: Specs, number: int) -> dict[str, np.ndarray]:
    """One episode as it is stored: the fields of :class:`jepa.schema.Sample` -> rows, one per frame.

    video uint8 [T,C,H,W] -> [T,H,W,C]; action, reward and terminated of T-1 rows get their padding row (NaN for floats,
    false for ``terminated``); of T rows, the last one is replaced by it.

    Raises:
        InputError: something differs from ``specs``, or is NaN or infinite. Names the episode.
    """
    widths = sizes(specs)
    arrays = {name: np.asarray(values) for name, values in given.items() if values is not None}
    if missing := [name for name, size in widths.items() if size and name not in arrays]:
        raise InputError(f"episode {number} has no {missing[0]}, which the specs promise; pass it")
    rows = {"video": _frames(arrays["video"], specs, number)}
    for name in NAMES[1:]:
        if name in arrays:
            rows[name] = _column(name, arrays[name], len(rows["video"]), widths.get(name), number)
    return rows


def sizes(specs: Specs) -> dict[str, Any]:
    """What the columns of such episodes measure: [H,W,C] of the video and the widths of the others, 0 for none."""
    seen = specs.observation
    widths = {"action": specs.action.env_width, "proprio": len(seen.proprio_mean), "state": len(seen.state_names)}
    return {"video": [seen.height, seen.width, seen.channels]} | widths


def guessed(tables: Mapping[str, Any]) -> Specs:
    """The specs of columns about which nothing else is known: unbounded actions, nothing normalised."""
    actions, proprio, state = (width(tables[name]) if name in tables else 0 for name in ("action", "proprio", "state"))
    edge, (height, wide, channels) = (float("inf"),) * actions, tables["video"].shape[1:]
    action = ActionSpec(tuple(-bound for bound in edge), edge, (0.0,) * actions, (1.0,) * actions)
    names = tuple(f"state_{number}" for number in range(state))
    return Specs(action, ObservationSpec(height, wide, channels, (0.0,) * proprio, (1.0,) * proprio, names))


def differences(mine: Specs, theirs: Specs) -> list[str]:
    """What differs, but for the statistics."""
    measures = ("action.mean", "action.std", "observation.proprio_mean", "observation.proprio_std")
    lines = [line for line in mine.differences(theirs) if not line.startswith(measures)]
    seen, other = sizes(mine), sizes(theirs)
    return lines + [f"{name}: {seen[name]} != {other[name]}" for name in seen if seen[name] != other[name]]


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
    padding = np.full((frames - len(kept), *shape), False if name == "terminated" else np.nan, kind)
    return np.concatenate([kept, padding])


def check_type(name: str, table: Any, where: str) -> None:
    """Raise InputError when a stored column has another type or number of axes than its name promises."""
    kinds, axes, expected = TYPES[name]
    if table.dtype.kind not in kinds or table.ndim not in axes or (name == "video" and table.dtype.itemsize != 1):
        raise InputError(f"{where} is {table.dtype} {list(table.shape)}, expected {expected}; convert it")


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


def _kept(
    name: str, table: Any, length: np.ndarray, offset: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First row, rows and which of them count (within an episode, not padding), a block at a time."""
    counts = np.zeros(len(table) + 1, np.int64)
    np.add.at(counts, offset, 1)
    np.add.at(counts, offset + length - (name in STEPS), -1)
    inside = counts.cumsum() > 0
    for start in range(0, len(table), SCAN):
        block = np.asarray(table[start : start + SCAN])
        yield start, block, inside[start : start + len(block)]


def take(table: Any, rows: np.ndarray) -> np.ndarray:
    """Rows [B,T] of an array or a dataset. HDF5 needs milliseconds for a strided selection, microseconds for a run."""
    if isinstance(table, np.ndarray):
        return table[rows]
    taken = np.empty((*rows.shape, *table.shape[1:]), table.dtype)
    for window, places in zip(taken, rows):
        if table.ndim < 4 and len(places):  # narrow: what lies between costs less than another call
            first = places.min()
            window[:] = table[first : places.max() + 1][places - first]
            continue
        cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1), len(places)]
        for begin, end in zip(cuts, cuts[1:]):
            if begin < end:
                window[begin:end] = table[places[begin] : places[end - 1] + 1]
    return taken


def as_tensor(name: str, rows: np.ndarray) -> Tensor:
    """Stored rows [B,T,...] as a :class:`jepa.schema.Sample` holds them: video [B,T,C,H,W] is a permuted view."""
    if name == "video":
        return torch.from_numpy(rows).permute(0, 1, 4, 2, 3)
    if name in ("reward", "terminated"):
        rows = rows.reshape(rows.shape[:2])
    return torch.from_numpy(rows.astype(bool if name == "terminated" else np.float32, copy=False))


def free_memory() -> float:
    """Bytes that can be allocated without swapping."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
