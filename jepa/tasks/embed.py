"""Encode a dataset once with a frozen encoder, for probes to read (``jepa embed``): frame by frame, or clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jepa.data.clips import split
from jepa.data.module import EpisodeData
from jepa.data.video import VideoEpisodes
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.tasks.embed_clips import readers, write_clips
from jepa.tasks.embed_frames import write_cache
from jepa.tasks.features import Pool
from jepa.tasks.latents import Dtype, Embeds, Precision, Settings

SPLITS = ("train", "val", "test")


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
    layers: list[int] | None = None,
    quantise: int | None = None,
    shard_mb: int = 256,
    checkpoint: str | None = None,
) -> Path:
    """Encode a dataset with a frozen model, once, into a feature cache.

    Episodes are encoded frame by frame; videos and images by the clips that an evaluation takes from them, of which
    every view becomes a row. A cache of the same weights, data and settings is kept; any other is refused. A run that
    was cut off goes on behind its last whole shard when it is repeated.

    Args:
        world: the model, e.g. class_path jepa.checkpoints.load.load; untrained=true there gives the baseline.
        data: the episodes and their split, as in the configuration of the fit (frames and frame_skip play no part); or
            the clips of videos, where each video is an episode whose state is its labels.
        out: the folder to write.
        splits: the parts to encode: train, val, test.
        limit: at most so many episodes of each part; all of them if null.
        batch: frames that are encoded together; of clips, data.batch_size.
        device: where to encode: cpu, cuda.
        dtype: float16 and bfloat16 take half of the room of float32; bfloat16 has its range.
        pool: mean keeps only the average over all tokens of a row; space keeps one for each step, time one for each
            place in the frame; grid averages 2x2 neighbours in the frame, grid_time over steps too; none keeps all.
        precision: in which numbers the encoder computes; bfloat16 where the device is fast at it.
        layers: numbers of the blocks whose outputs are kept, rising; -1 is the last. Each is normalised as the last one
            is. Their tokens lie side by side, and each is pooled by itself. The latents of encode if null.
        quantise: bytes that a token takes, by product quantisation (faiss), a divisor of the width; numbers if null.
        shard_mb: megabytes of the largest file.
        checkpoint: path of what the weights came from, noted in the cache for readers, with its hash.
    """
    if unknown := [name for name in splits if name not in SPLITS]:
        raise InputError(f"split {unknown[0]} is unknown: expected some of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: expected at least 1 episode of each part, or null for all")
    settings = Settings(
        batch, device, dtype, pool, None, precision, None if layers is None else tuple(layers), quantise, shard_mb
    )
    if isinstance(data, VideoData):
        settings = replace(settings, batch=data.batch_size)
        return write_clips(world, data, splits, Path(out), settings, limit, checkpoint or "")
    parts = dict(zip(SPLITS, split(data.episodes, data.splits, data.seed)))
    chosen = {name: parts[name][:limit] for name in splits}
    settings = replace(settings, size=data.size)
    read_by = readers(data.episodes.index.decoder) if isinstance(data.episodes, VideoEpisodes) else ["h5py"]
    return write_cache(
        world, data.episodes, chosen, Path(out), settings, checkpoint or "", str(data.path), read_by, data.specs
    )
