"""The one pass of ``jepa embed`` over a dataset: batches in, rows of a feature cache out, from where a run stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from jepa.errors import InputError
from jepa.retrieval import ProductQuantiser
from jepa.schema import Sample
from jepa.tasks import latents
from jepa.tasks.construction import Construction
from jepa.tasks.features import CODEBOOKS, HALVED
from jepa.tasks.latents import Embeds, Settings
from jepa.tasks.maps import gridded
from jepa.tasks.shards import array

log = logging.getLogger(__name__)

LEARNT, HELD = 2**15, 2**12  # tokens that codebooks learn from, and others that tell how much they lose


@dataclass(frozen=True)
class Batch:
    """Items of a dataset in their order, and those before them that could not be read."""

    items: np.ndarray  # int64 [n], ascending: the rows of the cache
    sample: Sample  # video [n,T,C,H,W]
    columns: dict[str, np.ndarray]  # what stands beside the latents, [n,...] each
    missing: dict[int, str] = field(default_factory=dict)  # item -> its file


class Rows(Protocol):
    """A dataset as the items that become rows."""

    total: int
    unit: str  # what an item is, for the progress bar

    def example(self) -> Batch:
        """A row like all others; its pixels need not be real."""

    def batches(self, begin: int, left_out: dict[int, str]) -> Iterator[Batch]:
        """All items from ``begin`` on, cut into batches as they would be from 0, so that the first may begin earlier;
        those that are left out already are not read again. A batch without items says what is missing at the end."""

    def some(self, items: np.ndarray) -> Iterator[Sample]:
        """Those of these items, ascending, that can be read, in batches."""

    def encode(self, world: Embeds, sample: Sample, settings: Settings) -> Tensor:
        """z [n,T',L*N,D] of the sample of a batch."""

    def name(self, item: int) -> str:
        """Of an item, for messages."""

    def summary(self, left_out: dict[int, str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Offsets of the episodes, and what the cache's meta says of them, now that all are read."""


@torch.inference_mode()
def write_rows(world: Embeds, data: Rows, build: Construction, settings: Settings, about: dict[str, Any]) -> None:
    """Encode all items into the cache, which is finished then; ``about`` says what else its meta tells."""
    example = data.example()
    z = latents.pooled(data.encode(world, example.sample, settings), world, settings)
    latents.check_layers(world, example.sample, settings)
    shape = latents.shape(z, world, settings)
    _check_maps(example, world, settings)
    build.expect({"features": _example(z, settings), **gridded(example.columns, shape)}, data.total)
    quantiser = _quantiser(world, data, build, settings, shape) if settings.quantise else None
    bar = Progress(TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn(data.unit), TimeRemainingColumn())
    with bar:
        job = bar.add_task("embed", total=data.total, completed=min(build.begin, data.total))
        for batch in data.batches(build.begin, build.left_out):
            build.leave_out(batch.missing)
            if len(batch.items):
                features = _features(world, data, batch, quantiser, settings)
                build.append(batch.items, {"features": features, **gridded(batch.columns, shape)})
                bar.update(job, completed=int(batch.items[-1]) + 1)
        bar.update(job, completed=data.total)
    offsets, told = data.summary(build.left_out)
    build.finish(offsets, {**about, **shape, **told})


def _check_maps(example: Batch, world: Embeds, settings: Settings) -> None:
    """The last token of an odd side is halved alone: it is of fewer pixels than the others, and maps are cut evenly."""
    if "maps" in example.columns and settings.pool in HALVED:
        grid = latents.frame_grid(world)
        if any(side % 2 for side in grid):
            raise InputError(
                f"pool={settings.pool} of {grid[0]}x{grid[1]} tokens that have maps: expected even sides, set pool "
                "to none or data.size to another"
            )


def _example(z: Tensor, settings: Settings) -> np.ndarray:
    """A row of the features, of the size and type that it will have on the disk."""
    if not settings.quantise:
        return latents.rows(z.cpu().to(getattr(torch, settings.dtype)))
    if z.shape[1] * z.shape[2] == 1:
        raise InputError(f"quantise={settings.quantise} of rows of one token, which are small: leave quantise out")
    return np.zeros((1, z.shape[1] * z.shape[2], settings.quantise), np.uint8)


def _features(
    world: Embeds, data: Rows, batch: Batch, quantiser: ProductQuantiser | None, settings: Settings
) -> np.ndarray:
    z = data.encode(world, batch.sample, settings)
    found = latents.rows(latents.kept(z, world, settings, lambda row: data.name(int(batch.items[row]))))
    if quantiser is None:
        return found
    return quantiser.encode(found.reshape(-1, found.shape[2])).reshape(*found.shape[:2], -1)


def _quantiser(
    world: Embeds, data: Rows, build: Construction, settings: Settings, shape: dict[str, Any]
) -> ProductQuantiser:
    """Learnt from items spread over the dataset, before its first row is written; kept for when a run goes on."""
    if build.recall("quantisation"):
        return ProductQuantiser(array(build.folder / CODEBOOKS))
    of_one = shape["steps"] * shape["tokens"]
    count = min(data.total, -(-(LEARNT + HELD) // of_one))
    chosen = np.sort(np.random.default_rng(0).permutation(data.total)[:count])
    found = [
        latents.pooled(data.encode(world, sample, settings), world, settings).flatten(0, 2).cpu().numpy()
        for sample in data.some(chosen)
    ]
    found = np.concatenate([np.zeros((0, shape["width"]), np.float32), *found])
    tokens = np.random.default_rng(1).permutation(found)[: LEARNT + HELD]
    held = len(tokens) // 9  # in the proportion of HELD to LEARNT
    made = ProductQuantiser.train(tokens[held:], settings.quantise)
    lost = round(made.error(tokens[:held]), 6)
    log.info("%d bytes lose %.4f of a token's variance, by tokens kept apart", settings.quantise, lost)
    about = {"bytes": settings.quantise, "learnt_from": len(tokens) - held, "lost": lost}
    build.note("quantisation", about, codebooks=made.codebooks)
    return made
