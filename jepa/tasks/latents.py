"""From pixels to the latents that a feature cache keeps: the encoder's side of ``jepa embed``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from jepa.data.transforms import resize
from jepa.errors import InputError, check_choice
from jepa.models.encoders import Encoder
from jepa.schema import Sample, Specs
from jepa.tasks.features import AVERAGED, HALVED, Pool, pool_tokens

Dtype = Literal["float16", "bfloat16", "float32"]
Precision = Literal["float32", "bfloat16"]
Module = TypeVar("Module", bound=nn.Module)


class Embeds(Protocol):
    """What can be embedded: a torch module with these; a world model, a masked model, an encoder alone.

    Its ``reader``, or its ``encoder``, gives the layers and the grid of its tokens, where it has one.
    """

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
    layers: tuple[int, ...] | None = None
    quantise: int | None = None
    shard_mb: int = 256

    def identity(self) -> dict[str, object]:
        """What changes the numbers of a cache."""
        return {
            "dtype": "codes" if self.quantise else self.dtype,
            "pool": self.pool,
            "precision": self.precision,
            "layers": None if self.layers is None else list(self.layers),
            "quantise": self.quantise,
        }


def prepared(world: Embeds, settings: Settings) -> tuple[Embeds, Settings]:
    """The encoder on its device, ready to be read, and the settings with their layers counted from 0; InputError where
    the world is no encoder, cannot go there, or has not what is asked for."""
    if not isinstance(world, nn.Module) or not callable(getattr(world, "encode", None)):
        raise InputError(f"world is a {type(world).__name__}: expected a torch module with encode(sample)")
    check_choice("pool", settings.pool, AVERAGED)
    check_choice("dtype", settings.dtype, ("float16", "bfloat16", "float32"))
    if settings.quantise is not None and settings.quantise < 1:
        raise InputError(f"quantise={settings.quantise}: expected the bytes of a token, or null for numbers")
    settings = replace(settings, layers=_counted(world, settings.layers))
    return on_device(world, settings.device).eval(), settings


def on_device(module: Module, device: str) -> Module:
    """The module itself, moved to a device such as cuda.

    Raises:
        InputError: there is no such device, or it has no room.
    """
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA enabled" by an assertion
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"device={device} cannot be used ({reason}): set device to cpu") from error


def _counted(world: Embeds, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Numbers of blocks, from 0; negative ones count from the end."""
    if layers is None:
        return None
    encoder = reader(world)
    if not isinstance(encoder, Encoder) or not encoder.depth:
        name = type(encoder).__name__
        raise InputError(f"layers={list(layers)} of a {name}, which has none to choose: leave layers out")
    depth = encoder.depth
    counted = tuple(number + depth if number < 0 else number for number in layers)
    if not counted or list(counted) != sorted(set(counted)) or not 0 <= counted[0] <= counted[-1] < depth:
        raise InputError(
            f"layers={list(layers)} of {depth} blocks: expected rising numbers from 0 to {depth - 1}, or from "
            f"{-depth} to -1"
        )
    return counted


def reader(world: Embeds) -> nn.Module:
    """The encoder that ``world.encode`` reads through, or the world itself."""
    return getattr(world, "reader", None) or getattr(world, "encoder", None) or world


def frame_grid(world: Embeds) -> tuple[int, int] | None:
    """Rows and columns of the tokens of a frame, where they lie in a grid."""
    encoder, seen = reader(world), world.specs.observation
    if patch := getattr(encoder, "patch", None):  # a transformer that takes frames of several sizes
        return seen.height // patch, seen.width // patch
    grid = getattr(encoder, "grid", None)
    return None if grid is None else tuple(grid)


def encode(world: Embeds, sample: Sample, settings: Settings) -> Tensor:
    """All latents ``[B,T',L*N,D]`` of a batch, float32 on the device; L is 1, or the number of layers asked for."""
    # what an encoder may see: pixels, proprioception and how far to look ahead, never the privileged state
    seen = Sample(video=sample.video, proprio=sample.proprio, ahead=sample.ahead).to(settings.device)
    if settings.size:
        seen = replace(seen, video=resize(seen.video, settings.size))
    kind = torch.device(settings.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        if settings.layers is None:
            return world.encode(seen).float()
        return reader(world).layers(seen.video, settings.layers).float()


def check_layers(world: Embeds, sample: Sample, settings: Settings) -> None:
    """The last layer must be what ``world.encode`` gives: a model that makes more of it has no layers to choose."""
    if settings.layers is None:
        return
    last = replace(settings, layers=(reader(world).depth - 1,))
    mine, whole = encode(world, sample, last), encode(world, sample, replace(settings, layers=None))
    if mine.shape != whole.shape or not torch.allclose(mine, whole, rtol=1e-2, atol=1e-2):
        name = type(world).__name__
        raise InputError(f"layers of a {name}, which makes more of its encoder's last layer: leave layers out")


def pooled(z: Tensor, world: Embeds, settings: Settings) -> Tensor:
    """``z [B,T',L*N,D]`` of :func:`encode`, with the tokens that are kept."""
    return pool_tokens(z, settings.pool, len(settings.layers or (0,)), frame_grid(world))


def kept(z: Tensor, world: Embeds, settings: Settings, name: Callable[[int], str]) -> Tensor:
    """What a cache keeps of latents: pooled, on the CPU, in its type; float32 where they are to be quantised.

    ``name(row)`` names a row that is not finite.
    """
    dtype = "float32" if settings.quantise else settings.dtype
    z = pooled(z, world, settings).to(getattr(torch, dtype)).cpu()
    bad = ~z.flatten(1).isfinite().all(1)
    if bad.any():
        remedy = "check checkpoint" if dtype == "float32" else "check checkpoint, or set dtype to float32"
        raise InputError(f"the latent of {name(int(bad.int().argmax()))} is not finite in {dtype}: {remedy}")
    return z


def rows(z: Tensor) -> np.ndarray:
    """``[B,T,N,D]`` as rows of a cache, ``[B,T*N,D]``; bfloat16, which numpy lacks, as the uint16 of its bits."""
    z = z.flatten(1, 2)
    return z.view(torch.int16).numpy().view(np.uint16) if z.dtype == torch.bfloat16 else z.numpy()


def shape(z: Tensor, world: Embeds, settings: Settings) -> dict[str, object]:
    """What a cache says of the shape of its pooled latents: steps T, tokens N of a step (of all layers), their grid in
    each layer, and the width D."""
    grid = frame_grid(world)
    if grid is not None and settings.pool in HALVED:
        grid = tuple(-(-side // 2) for side in grid)
    fits = grid is not None and math.prod(grid) * len(settings.layers or (0,)) == z.shape[2]
    return {"steps": z.shape[1], "tokens": z.shape[2], "grid": list(grid) if fits else None, "width": z.shape[3]}


def check_frames(world: Embeds, channels: int, height: int, width: int, remedy: str) -> None:
    """What the encoder was made for must be what it is given."""
    seen = world.specs.observation
    wants, gives = (seen.channels, seen.height, seen.width), (channels, height, width)
    if wants != gives:
        raise InputError(
            f"the data gives frames {gives} (channels, height, width), the checkpoint expects {wants}: {remedy}"
        )
