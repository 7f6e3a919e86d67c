"""Encode every frame of a dataset once with a frozen encoder, for probes to read (``jepa embed``)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import jepa
from jepa.data.clips import split
from jepa.data.module import EpisodeData
from jepa.data.transforms import resize
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
Dtype = Literal["float16", "float32"]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Settings:
    """How frames become latents: see :func:`embed`. ``size`` resizes frames before they are encoded."""

    batch: int = 256
    device: str = "cpu"
    dtype: Dtype = "float16"
    pool: Pool = "none"
    size: int | None = None


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


def _encode(world: World, rows: Sample, settings: Settings, batch: list[Piece]) -> np.ndarray:
    """Latents ``[n,N,D]`` of the rows of a batch."""
    if rows.video is None:
        raise InputError("the data has no video column, which the encoder reads: record it with pixels")
    # What the encoder may see: pixels and proprioception, never the privileged state.
    proprio = None if rows.proprio is None else rows.proprio.unsqueeze(1)
    seen = Sample(video=rows.video.unsqueeze(1), proprio=proprio).to(settings.device)
    if settings.size:
        seen = replace(seen, video=resize(seen.video, settings.size))
    z = pool_tokens(world.encode(seen), settings.pool)
    if z.shape[:2] != (len(rows.video), 1):
        raise InputError(
            f"the encoder made {z.shape[1]} latents of one frame: expected one, choose an encoder that works frame by "
            "frame"
        )
    z = z[:, 0].to(getattr(torch, settings.dtype)).cpu()
    bad = ~z.flatten(1).isfinite().all(1)
    if bad.any():
        row = int(bad.int().argmax())
        frames = [(number, frame) for number, start, stop in batch for frame in range(start, stop)]
        raise InputError(
            f"the latent of episode {frames[row][0]}, frame {frames[row][1]} is not finite in {settings.dtype}: check "
            "checkpoint, or set dtype to float32"
        )
    return z.numpy()


@torch.inference_mode()
def _write(
    world: World, episodes: Episodes, numbers: Sequence[int], folder: Path, settings: Settings
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
            for pieces in _batches(episodes, numbers, settings.batch):
                rows = _read(episodes, pieces)
                arrays = {name: getattr(rows, name) for name in COLUMNS}
                arrays = {name: value.numpy() for name, value in arrays.items() if value is not None}
                arrays["features"] = _encode(world, rows, settings, pieces)
                for name, value in arrays.items():
                    if name not in columns:
                        columns[name] = Column(folder / f"{name}.npy", total, value)
                    columns[name].append(value)
                bar.advance(job, len(arrays["features"]))
    finally:
        for column in columns.values():
            column.close()
    return columns["features"].shape


def _check_match(world: World, episodes: Episodes, size: int | None) -> None:
    """What the encoder was made for must be what the data holds."""
    mine, theirs = world.specs, episodes.specs
    wants = (mine.observation.channels, mine.observation.height, mine.observation.width)
    stored = (theirs.observation.height, theirs.observation.width)
    holds = (theirs.observation.channels, *((size, size) if size else stored))
    if wants != holds:
        raise InputError(
            f"the data gives frames {holds} (channels, height, width), the checkpoint expects {wants}: choose the data "
            "that it was trained on, or set data.size"
        )
    # a video has no actions, and encoding needs none
    if theirs.action.env_width not in (0, mine.action.env_width):
        raise InputError(
            f"the data has actions of width {theirs.action.env_width}, the checkpoint expects "
            f"{mine.action.env_width}: choose the data that it was trained on"
        )


def _identity(
    world: World, episodes: Episodes, splits: Mapping[str, Sequence[int]], settings: Settings
) -> dict[str, Any]:
    """What must agree for a cache to be the one that was asked for."""
    frames = f"resized to {settings.size}x{settings.size}" if settings.size else "as stored"
    return {
        "format": FORMAT,
        "version": VERSION,
        "weights": fingerprint(world),
        "data": header(episodes),
        "dtype": settings.dtype,
        "pool": settings.pool,
        "transform": f"pixels {frames}, one frame at a time",
        "specs": world.specs.to_dict(),
        "splits": {name: [int(number) for number in numbers] for name, numbers in splits.items()},
    }


def write_cache(
    world: World,
    episodes: Episodes,
    splits: Mapping[str, Sequence[int]],
    out: Path,
    settings: Settings = Settings(),
    checkpoint: str = "",
    source: str = "",
) -> Path:
    """Encode the episodes of ``splits`` (name to episode numbers) into the folder ``out``, and return it.

    A cache that is already there and equal in every respect is kept as it is. ``checkpoint`` and ``source`` say for
    readers where weights and data came from; what identifies them are the fingerprints of their contents.
    """
    if not isinstance(world, nn.Module):
        raise InputError(f"a world of type {type(world).__name__}: expected a torch module, whose weights identify it")
    numbers = [number for part in splits.values() for number in part]
    if len(numbers) != len(set(numbers)):
        raise InputError("an episode belongs to two splits: expected disjoint splits, change their fractions or lists")
    if settings.batch < 1 or not numbers:
        raise InputError(f"batch={settings.batch} over {len(numbers)} episodes: expected at least 1 of each")
    _check_match(world, episodes, settings.size)
    world = world.to(settings.device).eval()
    identity = _identity(world, episodes, splits, settings)
    if exists(out, identity):
        log.info("%s is already the cache of these weights and data", out)
        return out
    with complete(out) as folder:
        tokens, width = _write(world, episodes, numbers, folder, settings)
        origin = {"checkpoint": checkpoint, "source": source, "tokens": tokens, "width": width}
        software = {"jepa": jepa.__version__, "torch": torch.__version__, "numpy": np.__version__}
        (folder / META).write_text(json.dumps({**identity, **origin, "software": software}, indent=1))
    return out


def embed(
    world: World,
    data: EpisodeData,
    out: Path,
    splits: Sequence[str] = SPLITS,
    limit: int | None = None,
    batch: int = 256,
    device: str = "cpu",
    dtype: Dtype = "float16",
    pool: Pool = "none",
    checkpoint: str = "",
) -> Path:
    """Encode the frames of a dataset with a frozen world model, once, into a feature cache.

    Frames are encoded one by one. A cache of the same weights, data and settings is kept; any other is refused.

    Args:
        world: the world model, e.g. class_path jepa.checkpoints.load.load; untrained=true there gives the baseline.
        data: the episodes and their split, as in the configuration of the fit (frames and frame_skip play no part).
        out: the folder to write.
        splits: the parts to encode: train, val, test.
        limit: at most so many episodes of each part; all of them if null.
        batch: frames that are encoded together.
        device: where to encode: cpu, cuda.
        dtype: float16 takes half of the room of float32.
        pool: mean keeps the average over a frame's tokens only, none keeps all tokens.
        checkpoint: the checkpoint's path, noted in the cache for readers.
    """
    parts = dict(zip(SPLITS, split(data.episodes, data.splits, data.seed)))
    if unknown := [name for name in splits if name not in parts]:
        raise InputError(f"split {unknown[0]} is unknown: expected some of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: expected at least 1 episode of each part, or null for all")
    chosen = {name: parts[name][:limit] for name in splits}
    settings = Settings(batch, device, dtype, pool, data.size)
    return write_cache(world, data.episodes, chosen, Path(out), settings, checkpoint, source=str(data.path))
