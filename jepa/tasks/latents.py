"""From pixels to the latents that a feature cache keeps: the encoder's side of ``jepa embed``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from jepa.data.transforms import resize
from jepa.errors import InputError, check_choice
from jepa.schema import Sample, Specs
from jepa.tasks.features import AVERAGED, Pool, pool_tokens

Dtype = Literal["float16", "float32"]
Precision = Literal["float32", "bfloat16"]


class Embeds(Protocol):
    """What can be embedded: a torch module with these; a world model, a masked model, an encoder alone."""

    specs: Specs

    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] -> z [B,T',N,D]"""


@dataclass(frozen=True)
class Settings:
    """How pixels become latents: see :func:`jepa.tasks.embed.embed`. ``size`` resizes single frames before that."""

    batch: int = 256
    device: str = "cpu"
    dtype: Dtype = "float16"
    pool: Pool = "none"
    size: int | None = None
    precision: Precision = "float32"

    def identity(self) -> dict[str, str]:
        """What changes the numbers of a cache."""
        return {"dtype": self.dtype, "pool": self.pool, "precision": self.precision}


def prepared(world: Embeds, settings: Settings) -> Embeds:
    """The encoder on its device, ready to be read; InputError where it is none, or cannot go there."""
    if not isinstance(world, nn.Module) or not callable(getattr(world, "encode", None)):
        raise InputError(f"world is a {type(world).__name__}: expected a torch module with encode(sample)")
    check_choice("pool", settings.pool, AVERAGED)
    try:
        return world.to(settings.device).eval()
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA enabled" by an assertion
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"device={settings.device} cannot be used ({reason}): set device to cpu") from error


def encode(world: Embeds, sample: Sample, settings: Settings) -> Tensor:
    """All latents ``[B,T',N,D]`` of a batch, float32 on the device."""
    # what an encoder may see: pixels and proprioception, never the privileged state
    seen = Sample(video=sample.video, proprio=sample.proprio).to(settings.device)
    if settings.size:
        seen = replace(seen, video=resize(seen.video, settings.size))
    kind = torch.device(settings.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        return world.encode(seen).float()


def kept(z: Tensor, settings: Settings, name: Callable[[int], str]) -> Tensor:
    """What a cache keeps of latents: pooled, on the CPU, in its type. ``name(row)`` names a row that is not finite."""
    z = pool_tokens(z, settings.pool).to(getattr(torch, settings.dtype)).cpu()
    bad = ~z.flatten(1).isfinite().all(1)
    if bad.any():
        raise InputError(
            f"the latent of {name(int(bad.int().argmax()))} is not finite in {settings.dtype}: check checkpoint, or "
            "set dtype to float32"
        )
    return z


def rows(z: Tensor) -> np.ndarray:
    """``[B,T,N,D]`` as rows of a cache, ``[B,T*N,D]``."""
    return z.flatten(1, 2).numpy()


def shape(z: Tensor, world: Embeds) -> dict[str, object]:
    """What a cache says of the shape of its latents: steps T, tokens N of a step, their grid, and the width D."""
    grid = getattr(getattr(world, "encoder", world), "grid", None)
    return {
        "steps": z.shape[1],
        "tokens": z.shape[2],
        "grid": list(grid) if grid is not None and int(np.prod(grid)) == z.shape[2] else None,
        "width": z.shape[3],
    }


def check_frames(world: Embeds, channels: int, height: int, width: int, remedy: str) -> None:
    """What the encoder was made for must be what it is given."""
    seen = world.specs.observation
    wants, gives = (seen.channels, seen.height, seen.width), (channels, height, width)
    if wants != gives:
        raise InputError(
            f"the data gives frames {gives} (channels, height, width), the checkpoint expects {wants}: {remedy}"
        )
