"""Encode every frame of a dataset once with a frozen encoder, for probes to read (``jepa embed``)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import jepa
from jepa.errors import InputError
from jepa.schema import Episodes, Sample, World
from jepa.tasks.features import (
    COLUMNS,
    FORMAT,
    META,
    VERSION,
    Column,
    Pool,
    complete,
    exists,
    fingerprint,
    header,
    pool_tokens,
)

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]  # episode, first frame, end


def _batches(episodes: Episodes, numbers: Sequence[int], size: int) -> Iterator[list[Piece]]:
    """All frames in order, cut into batches of ``size`` frames that may span episodes."""
    batch: list[Piece] = []
    room = size
    for number in numbers:
        start, end = 0, int(episodes.length(number))
        while start < end:
            stop = min(end, start + room)
            batch.append((number, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def _read(episodes: Episodes, batch: list[Piece]) -> Sample:
    """The frames of a batch as rows of one unbatched sample: video [n,C,H,W], action [n,a], ..."""
    parts = [episodes.read(number, np.arange(start, stop)) for number, start, stop in batch]
    names = [name for name in ("video", *COLUMNS) if getattr(parts[0], name) is not None]
    return Sample(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _encode(world: World, rows: Sample, device: str, dtype: str, pool: Pool, batch: list[Piece]) -> np.ndarray:
    if rows.video is None:
        raise InputError("the data has no video column, which the encoder reads: record it with pixels")
    # What the encoder may see: pixels and proprioception, never the privileged state.
    proprio = None if rows.proprio is None else rows.proprio.unsqueeze(1)
    z = pool_tokens(world.encode(Sample(video=rows.video.unsqueeze(1), proprio=proprio).to(device)), pool)
    if z.shape[:2] != (len(rows.video), 1):
        raise InputError(
            f"the encoder made {z.shape[1]} latents of one frame: expected one, choose an encoder that works frame by "
            "frame"
        )
    z = z[:, 0].to(getattr(torch, dtype)).cpu()
    bad = ~z.flatten(1).isfinite().all(1)
    if bad.any():
        row = int(bad.int().argmax())
        frames = [(number, frame) for number, start, stop in batch for frame in range(start, stop)]
        raise InputError(
            f"the latent of episode {frames[row][0]}, frame {frames[row][1]} is not finite in {dtype}: check the "
            "checkpoint, or set dtype to float32"
        )
    return z.numpy()


@torch.inference_mode()
def _write(
    world: World,
    episodes: Episodes,
    numbers: Sequence[int],
    folder: Path,
    batch: int,
    device: str,
    dtype: str,
    pool: Pool,
) -> tuple[int, int]:
    """Write all arrays and return the tokens and the width of a latent."""
    offsets = np.cumsum([0, *(int(episodes.length(number)) for number in numbers)])
    total = int(offsets[-1])
    np.save(folder / "offsets.npy", offsets.astype(np.int64))
    columns: dict[str, Column] = {}
    bar = Progress(TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    try:
        with bar:
            job = bar.add_task("embed", total=total)
            for pieces in _batches(episodes, numbers, batch):
                rows = _read(episodes, pieces)
                arrays = {name: getattr(rows, name) for name in COLUMNS}
                arrays = {name: value.numpy() for name, value in arrays.items() if value is not None}
                arrays["features"] = _encode(world, rows, device, dtype, pool, pieces)
                for name, value in arrays.items():
                    if name not in columns:
                        columns[name] = Column(folder / f"{name}.npy", total, value)
                    columns[name].append(value)
                bar.advance(job, len(arrays["features"]))
    finally:
        for column in columns.values():
            column.close()
    return columns["features"].shape


def _check_match(world: World, episodes: Episodes) -> None:
    """What the encoder was made for must be what the data holds."""
    mine, theirs = world.specs, episodes.specs
    wants = (mine.observation.channels, mine.observation.height, mine.observation.width)
    holds = (theirs.observation.channels, theirs.observation.height, theirs.observation.width)
    if wants != holds:
        raise InputError(
            f"the data has frames {holds} (channels, height, width), the checkpoint expects {wants}: choose the data "
            "that it was trained on, or resize it"
        )
    if mine.action.env_width != theirs.action.env_width:
        raise InputError(
            f"the data has actions of width {theirs.action.env_width}, the checkpoint expects "
            f"{mine.action.env_width}: choose the data that it was trained on"
        )


def _identity(
    world: World, episodes: Episodes, splits: Mapping[str, Sequence[int]], dtype: str, pool: Pool
) -> dict[str, Any]:
    """What must agree for a cache to be the one that was asked for."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "weights": fingerprint(world),
        "data": header(episodes),
        "dtype": dtype,
        "pool": pool,
        "transform": "pixels as stored, one frame at a time",
        "specs": world.specs.to_dict(),
        "splits": {name: [int(number) for number in numbers] for name, numbers in splits.items()},
    }


def write_cache(
    world: World,
    episodes: Episodes,
    splits: Mapping[str, Sequence[int]],
    out: Path,
    batch: int = 256,
    device: str = "cpu",
    dtype: Literal["float16", "float32"] = "float16",
    pool: Pool = "none",
    checkpoint: str = "",
    source: str = "",
) -> Path:
    """Encode the episodes of ``splits`` (name to episode numbers) into the folder ``out``; see :func:`embed`.

    A cache that is already there and equal in every respect is kept as it is.
    """
    if not isinstance(world, nn.Module):
        raise InputError(f"a world of type {type(world).__name__}: expected a torch module, whose weights identify it")
    numbers = [number for part in splits.values() for number in part]
    if len(numbers) != len(set(numbers)):
        raise InputError("an episode belongs to two splits: expected disjoint splits, change their fractions or lists")
    if batch < 1 or not numbers:
        raise InputError(f"batch={batch} over {len(numbers)} episodes: expected at least 1 of each")
    _check_match(world, episodes)
    world = world.to(device).eval()
    identity = _identity(world, episodes, splits, dtype, pool)
    if exists(out, identity):
        log.info("%s is already the cache of these weights and data", out)
        return out
    with complete(out) as folder:
        tokens, width = _write(world, episodes, numbers, folder, batch, device, dtype, pool)
        origin = {"checkpoint": checkpoint, "source": source, "tokens": tokens, "width": width}
        software = {"jepa": jepa.__version__, "torch": torch.__version__, "numpy": np.__version__}
        (folder / META).write_text(json.dumps({**identity, **origin, "software": software}, indent=1))
    return out
