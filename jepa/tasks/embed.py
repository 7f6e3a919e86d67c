"""Encode a dataset once with a frozen encoder, for probes to read (``jepa embed``): frame by frame, or clip by clip."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jepa.data.clips import split
from jepa.data.module import EpisodeData
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.schema import Episodes, Sample
from jepa.tasks import latents
from jepa.tasks.embed_clips import write_clips
from jepa.tasks.features import COLUMNS, Columns, Pool, complete, exists, fingerprint, header, write_meta
from jepa.tasks.latents import Dtype, Embeds, Precision, Settings

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]  # episode, first frame, end
SPLITS = ("train", "val", "test")
CLIPS = "give it clips, by --data.class_path=jepa.data.video_module.VideoData"


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


def _encode(world: Embeds, rows: Sample, settings: Settings, batch: list[Piece]) -> torch.Tensor:
    """Latents ``[n,1,N,D]`` of the rows of a batch."""
    if rows.video is None:
        raise InputError("the data has no video column, which the encoder reads: record it with pixels")
    proprio = None if rows.proprio is None else rows.proprio.unsqueeze(1)
    try:
        z = latents.encode(world, Sample(video=rows.video.unsqueeze(1), proprio=proprio), settings)
    except InputError as error:
        raise InputError(f"the encoder does not take single frames ({error}); {CLIPS}") from error
    if z.shape[:2] != (len(rows.video), 1):
        raise InputError(f"the encoder made {z.shape[1]} latents of one frame, expected one: {CLIPS}")
    frames = [(number, frame) for number, start, stop in batch for frame in range(start, stop)]
    return latents.kept(z, settings, lambda row: "episode {}, frame {}".format(*frames[row]))


@torch.inference_mode()
def _write(
    world: Embeds, episodes: Episodes, numbers: Sequence[int], folder: Path, settings: Settings, out: Path
) -> dict[str, Any]:
    """Write all arrays and return what the latents look like."""
    offsets = np.cumsum([0, *(int(episodes.length(number)) for number in numbers)])
    total = int(offsets[-1])
    np.save(folder / "offsets.npy", offsets.astype(np.int64))
    bar = Progress(TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    with bar, Columns(folder, total, out) as columns:
        job = bar.add_task("embed", total=total)
        for pieces in _batches(episodes, numbers, settings.batch):
            rows = _read(episodes, pieces)
            z = _encode(world, rows, settings, pieces)
            arrays = {name: getattr(rows, name) for name in COLUMNS}
            arrays = {name: value.numpy() for name, value in arrays.items() if value is not None}
            columns.append({"features": latents.rows(z), **arrays})
            bar.advance(job, len(z))
    return latents.shape(z, world)


def _check_match(world: Embeds, episodes: Episodes, size: int | None) -> None:
    """What the encoder was made for must be what the data holds."""
    mine, theirs = world.specs, episodes.specs
    height, width = (size, size) if size else (theirs.observation.height, theirs.observation.width)
    remedy = "choose the data that it was trained on, or set data.size"
    latents.check_frames(world, theirs.observation.channels, height, width, remedy)
    # a video has no actions, and encoding needs none
    if theirs.action.env_width not in (0, mine.action.env_width):
        raise InputError(
            f"the data has actions of width {theirs.action.env_width}, the checkpoint expects "
            f"{mine.action.env_width}: choose the data that it was trained on"
        )


def _identity(
    world: Embeds, episodes: Episodes, splits: Mapping[str, Sequence[int]], settings: Settings
) -> dict[str, Any]:
    """What must agree for a cache to be the one that was asked for."""
    frames = f"resized to {settings.size}x{settings.size}" if settings.size else "as stored"
    return {
        "weights": fingerprint(world),
        "data": header(episodes),
        **settings.identity(),
        "transform": f"pixels {frames}, one frame at a time",
        "specs": world.specs.to_dict(),
        "splits": {name: [int(number) for number in numbers] for name, numbers in splits.items()},
    }


def write_cache(
    world: Embeds,
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
    numbers = [number for part in splits.values() for number in part]
    if len(numbers) != len(set(numbers)):
        raise InputError("an episode belongs to two splits: expected disjoint splits, change their fractions or lists")
    if settings.batch < 1 or not numbers:
        raise InputError(f"batch={settings.batch} over {len(numbers)} episodes: expected at least 1 of each")
    world = latents.prepared(world, settings)
    _check_match(world, episodes, settings.size)
    identity = _identity(world, episodes, splits, settings)
    if exists(out, identity):
        log.info("%s is already the cache of these weights and data", out)
        return out
    with complete(out) as folder:
        about = _write(world, episodes, numbers, folder, settings, out)
        write_meta(folder, identity, {"checkpoint": checkpoint, "source": source, **about})
    return out


def embed(
    world: Embeds,
    data: EpisodeData | VideoData,
    out: Path,
    splits: Sequence[str] = SPLITS,
    limit: int | None = None,
    batch: int = 256,
    device: str = "cpu",
    dtype: Dtype = "float16",
    pool: Pool = "none",
    precision: Precision = "float32",
    checkpoint: str = "",
) -> Path:
    """Encode a dataset with a frozen model, once, into a feature cache.

    Episodes are encoded frame by frame; videos by the clips that an evaluation takes from them, which become one row
    each. A cache of the same weights, data and settings is kept; any other is refused.

    Args:
        world: the model, e.g. class_path jepa.checkpoints.load.load; untrained=true there gives the baseline.
        data: the episodes and their split, as in the configuration of the fit (frames and frame_skip play no part); or
            the clips of videos, where each video is an episode whose state is its labels.
        out: the folder to write.
        splits: the parts to encode: train, val, test.
        limit: at most so many episodes of each part; all of them if null.
        batch: frames that are encoded together; of clips, data.batch_size.
        device: where to encode: cpu, cuda.
        dtype: float16 takes half of the room of float32.
        pool: mean keeps only the average over all tokens of a row; space keeps one for each step, time one for each
            place in the frame; none keeps all tokens.
        precision: in which numbers the encoder computes; bfloat16 where the device is fast at it.
        checkpoint: the checkpoint's path, noted in the cache for readers.
    """
    if unknown := [name for name in splits if name not in SPLITS]:
        raise InputError(f"split {unknown[0]} is unknown: expected some of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: expected at least 1 episode of each part, or null for all")
    if isinstance(data, VideoData):
        settings = Settings(data.batch_size, device, dtype, pool, None, precision)
        return write_clips(world, data, splits, Path(out), settings, limit, checkpoint)
    parts = dict(zip(SPLITS, split(data.episodes, data.splits, data.seed)))
    chosen = {name: parts[name][:limit] for name in splits}
    settings = Settings(batch, device, dtype, pool, data.size, precision)
    return write_cache(world, data.episodes, chosen, Path(out), settings, checkpoint, source=str(data.path))
