"""Every row of a feature cache as one vector, read in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError
from probes.cache import FeatureCache

MEMORY = 2**26  # bytes of float32 latents that are read at once


class Pooled:
    """The rows of a cache as one vector each, in batches: tokens are averaged, of several layers those of one.

    Args:
        cache: read front to back, each time anew.
        layer: of several, by its place among them; the last by default.

    Raises:
        InputError: a row is not finite, or the cache has no such layer.
    """

    def __init__(self, cache: FeatureCache, layer: int = -1) -> None:
        self.cache, self.width = cache, int(cache.features.shape[-1])
        self.layers = len(cache.meta.get("layers") or (0,))
        if not -self.layers <= layer < self.layers:
            raise InputError(
                f"layer={layer}, but {cache.path} holds {self.layers} layers: expected a place among them, from 0"
            )
        self.layer = layer

    def __len__(self) -> int:
        return len(self.cache.features)

    @property
    def tokens(self) -> int:
        """That are averaged."""
        return int(self.cache.features.shape[1]) // self.layers

    def rows(self, rows: slice | np.ndarray) -> Tensor:
        """float32 [n,D]"""
        z = torch.from_numpy(np.asarray(self.cache.features[rows])).float()
        if not z.isfinite().all():
            raise InputError(f"{self.cache.path} holds NaN or infinity: remove it and embed again")
        return z.unflatten(1, (self.cache.meta["steps"], self.layers, -1))[:, :, self.layer].mean((1, 2))

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """First row, and rows."""
        size = max(1, MEMORY // (4 * int(np.prod(self.cache.features.shape[1:]))))
        for start in range(0, len(self), size):
            yield start, self.rows(slice(start, start + size))
