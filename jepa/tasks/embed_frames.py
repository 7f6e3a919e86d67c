"""Frames of episodes as rows of a feature cache: what ``jepa embed`` does with :class:`EpisodeData`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.schema import Episodes, Sample, Specs
from jepa.tasks import latents
from jepa.tasks.construction import Construction
from jepa.tasks.encoding import Batch, write_rows
from jepa.tasks.features import COLUMNS, checkpoint_hash, exists, fingerprint, header, software
from jepa.tasks.latents import Embeds, Settings

log = logging.getLogger(__name__)

CLIPS = "give it clips, by --data.class_path=jepa.data.video_module.VideoData"


class Frames:
    """All frames of some episodes, one after the other: :class:`jepa.tasks.encoding.Rows`.

    Args:
        episodes: the store.
        numbers: of the episodes, in the order of the cache.
        size: frames of a batch, which may span episodes.
    """

    unit = "frames"

    def __init__(self, episodes: Episodes, numbers: Sequence[int], size: int) -> None:
        self.episodes, self.numbers, self.size = episodes, np.asarray(numbers), size
        self.offsets = np.cumsum([0, *(int(episodes.length(number)) for number in numbers)])
        self.total = int(self.offsets[-1])

    def example(self) -> Batch:
        return self._batch(np.arange(1))

    def batches(self, begin: int, left_out: dict[int, str]) -> Iterator[Batch]:
        assert not left_out, "a frame that cannot be read ends the run"
        for start in range(begin - begin % self.size, self.total, self.size):
            yield self._batch(np.arange(start, min(start + self.size, self.total)))

    def some(self, items: np.ndarray) -> Iterator[Sample]:
        for start in range(0, len(items), self.size):
            yield self._batch(items[start : start + self.size]).sample

    def _batch(self, items: np.ndarray) -> Batch:
        home = np.searchsorted(self.offsets, items, side="right") - 1
        parts = [
            self.episodes.read(int(self.numbers[episode]), items[home == episode] - self.offsets[episode])
            for episode in np.unique(home)
        ]
        if parts[0].video is None:
            raise InputError("the data has no video column, which the encoder reads: record it with pixels")
        columns = [name for name in COLUMNS if getattr(parts[0], name) is not None]
        held = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("video", *columns)}
        proprio = held["proprio"].unsqueeze(1) if "proprio" in held else None
        sample = Sample(video=held["video"].unsqueeze(1), proprio=proprio)
        return Batch(items, sample, {name: held[name].numpy() for name in columns})

    def encode(self, world: Embeds, sample: Sample, settings: Settings) -> Tensor:
        try:
            z = latents.encode(world, sample, settings)
        except InputError as error:
            raise InputError(f"the encoder does not take single frames ({error}); {CLIPS}") from error
        if z.shape[:2] != (len(sample.video), 1):
            raise InputError(f"the encoder made {z.shape[1]} latents of one frame, expected one: {CLIPS}")
        return z

    def name(self, item: int) -> str:
        home = int(np.searchsorted(self.offsets, item, side="right")) - 1
        return f"episode {self.numbers[home]}, frame {item - self.offsets[home]}"

    def summary(self, left_out: dict[int, str]) -> tuple[np.ndarray, dict[str, Any]]:
        return self.offsets, {}


def write_cache(
    world: Embeds,
    episodes: Episodes,
    splits: Mapping[str, Sequence[int]],
    out: Path,
    settings: Settings = Settings(),
    checkpoint: str = "",
    source: str = "",
    readers: Sequence[str] = (),
    specs: Specs | None = None,
) -> Path:
    """Encode the episodes of ``splits`` (name to episode numbers) into the folder ``out``, and return it.

    A cache that is already there and equal in every respect is kept as it is. ``checkpoint`` and ``source`` say for
    readers where weights and data came from; what identifies them are the fingerprints of their contents. ``readers``
    are the distributions that the episodes are read by. ``specs`` tell how windows of them are cut (frame skip); they
    are the cache's where the encoder knows of no actions.
    """
    numbers = [number for part in splits.values() for number in part]
    if len(numbers) != len(set(numbers)):
        raise InputError("an episode belongs to two splits: expected disjoint splits, change their fractions or lists")
    if settings.batch < 1 or not numbers:
        raise InputError(f"batch={settings.batch} over {len(numbers)} episodes: expected at least 1 of each")
    world, settings = latents.prepared(world, settings)
    _check_match(world, episodes, settings.size)
    specs = world.specs if world.specs.action.env_width else specs or episodes.specs
    identity = _identity(world, episodes, splits, settings, specs)
    about = {"checkpoint": checkpoint, "checkpoint_hash": checkpoint_hash(checkpoint), "source": source}
    if exists(out, identity):
        log.info("%s is already the cache of these weights and data", out)
        return out
    with Construction(out, identity, software(readers), settings.shard_mb) as build:
        write_rows(world, Frames(episodes, numbers, settings.batch), build, settings, about)
    return out


def _check_match(world: Embeds, episodes: Episodes, size: int | None) -> None:
    """What the encoder was made for must be what the data holds."""
    mine, theirs = world.specs, episodes.specs
    height, width = (size, size) if size else (theirs.observation.height, theirs.observation.width)
    remedy = "choose the data that it was trained on, or set data.size"
    latents.check_frames(world, theirs.observation.channels, height, width, remedy)
    # a video has no actions, and encoding needs none; nor does an encoder alone have any
    if mine.action.env_width and theirs.action.env_width not in (0, mine.action.env_width):
        raise InputError(
            f"the data has actions of width {theirs.action.env_width}, the checkpoint expects "
            f"{mine.action.env_width}: choose the data that it was trained on"
        )


def _identity(
    world: Embeds, episodes: Episodes, splits: Mapping[str, Sequence[int]], settings: Settings, specs: Specs
) -> dict[str, Any]:
    """What must agree for a cache to be the one that was asked for."""
    frames = f"resized to {settings.size}x{settings.size}" if settings.size else "as stored"
    return {
        "weights": fingerprint(world),
        "data": header(episodes),
        **settings.identity(),
        "transform": f"pixels {frames}, one frame at a time",
        "specs": specs.to_dict(),
        "splits": {name: [int(number) for number in numbers] for name, numbers in splits.items()},
    }
