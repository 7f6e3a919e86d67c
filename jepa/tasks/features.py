"""The feature cache on the disk: one folder of arrays, complete or not there at all.

    features-00000.npy, ...   [F,T*N,D]  latents of all rows, episode after episode: N tokens of each of T steps
    action-, proprio-, state-, reward-, terminated-00000.npy, ...   [F,...]  the columns that the data has, raw
    start-, segment-, view-00000.npy, ...  [F]  where rows are clips: first frame, which clip and which crop of a video
    offsets.npy    [E+1]        episode i holds the rows offsets[i] to offsets[i+1]
    codebooks.npy  [M,256,D/M]  where tokens are quantised: features are codes, uint8 [F,T*N,M]
    meta.json                   where it came from, the specs, and which episodes belong to which split

A row is a frame or a clip. Frames are encoded one by one (T=1), in environment steps; the frame skip is applied when
the cache is read. Clips are encoded whole: an episode is a video, its rows are the clips that were taken from it, and
``state`` holds its labels. Of several layers, the tokens lie side by side in each step: N is L times those of a layer.

Every column is cut into shards (numbered files) of the same rows. numpy has no bfloat16: it is stored as uint16.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jepa
from jepa.errors import InputError
from jepa.schema import Episodes

log = logging.getLogger(__name__)

FORMAT, VERSION = "jepa-features", 3
META, OFFSETS, CODEBOOKS = "meta.json", "offsets.npy", "codebooks.npy"
COLUMNS = ("action", "proprio", "state", "reward", "terminated")
LOOKED_AT = 32  # episodes of which a frame is read to tell one dataset from another

Pool = Literal["none", "mean", "space", "time", "grid", "grid_time"]
# axes of [B,T,L,N,D] that are averaged; "grid" also averages 2x2 neighbours
AVERAGED: dict[Pool, tuple[int, ...]] = {
    "none": (),
    "mean": (1, 3),
    "space": (3,),
    "time": (1,),
    "grid": (),
    "grid_time": (1,),
}
HALVED: tuple[Pool, ...] = ("grid", "grid_time")


def pool_tokens(z: Tensor, pool: Pool, layers: int = 1, grid: tuple[int, int] | None = None) -> Tensor:
    """``z [B,T,L*N,D]`` as it is, or averaged over the tokens of a step (space), over steps (time) or over both (mean).

    "grid" averages 2x2 neighbours in the frame, "grid_time" over steps too. A last row or column that has no neighbour,
    where a side is odd, is averaged with what there is: of 7 rows come 4. Layers are never mixed.

    Args:
        z: latents of ``layers`` layers, side by side.
        pool: what to average.
        layers: L.
        grid: rows and columns of the tokens of a layer, N in all.
    """
    z = z.unflatten(2, (layers, -1))
    z = _halve(z, pool, grid) if pool in HALVED else z
    return (z.mean(AVERAGED[pool], keepdim=True) if AVERAGED[pool] else z).flatten(2, 3)


def _halve(z: Tensor, pool: Pool, grid: tuple[int, int] | None) -> Tensor:
    """``[B,T,L,N,D]`` to a quarter of the tokens."""
    if grid is None or math.prod(grid) != z.shape[3] or math.prod(grid) == 1:
        raise InputError(f"pool={pool} of {z.shape[3]} tokens in no grid: set pool to none, mean, space or time")
    maps = z.flatten(0, 2).transpose(1, 2).unflatten(2, grid)
    maps = F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
    return maps.flatten(2).transpose(1, 2).unflatten(0, z.shape[:3])


def decode(stored: np.ndarray, codebooks: np.ndarray | None) -> np.ndarray:
    """Stored features ``[...,T*N,D or M]`` to numbers: bfloat16 (uint16) and codes (uint8) to float32, others as is."""
    if codebooks is not None:
        parts = np.arange(len(codebooks))
        return codebooks[parts, stored].reshape(*stored.shape[:-1], len(parts) * codebooks.shape[2])
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def header(episodes: Episodes) -> str:
    """SHA-256 over the specs (statistics included), the length of every episode, and a frame of some of them."""
    lengths = [int(episodes.length(i)) for i in range(len(episodes))]
    digest = hashlib.sha256(json.dumps([episodes.specs.to_dict(), lengths], sort_keys=True).encode())
    for number in np.linspace(0, len(lengths) - 1, min(LOOKED_AT, len(lengths))).astype(int).tolist():
        sample = episodes.read(number, np.array([lengths[number] // 2]))
        for name in ("video", *COLUMNS):
            if (value := getattr(sample, name)) is not None:
                digest.update(np.ascontiguousarray(value.numpy()).data)
    return digest.hexdigest()


def checkpoint_hash(path: str) -> str:
    """SHA-256 over a checkpoint: a file, or all the files of a folder; "" where none is named.

    Raises:
        InputError: nothing is there.
    """
    if not path:
        return ""
    place = Path(path)
    if not place.exists():
        raise InputError(f"no checkpoint at {path}: give the file that the weights came from, or leave checkpoint out")
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as bytes_of:
            while part := bytes_of.read(2**22):
                digest.update(part)
    return digest.hexdigest()


def software(libraries: Iterable[str] = ()) -> dict[str, str]:
    """Versions of what makes the numbers of a cache; ``libraries`` are the distributions that read the data."""
    own = {"jepa": jepa.__version__, "torch": torch.__version__}
    return own | {name: version(name) for name in ("numpy", "timm", *sorted(set(libraries)))}


def exists(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether ``out`` already is this cache. Anything else at that place is refused, never mixed or overwritten."""
    if not out.exists():
        return False
    try:
        meta = json.loads((out / META).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{out} exists and is not a feature cache: give another --out or remove it") from error
    if not isinstance(meta, dict) or (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{out} holds a cache of another version of jepa: give another --out or remove it")
    if different := differences(meta, identity):
        raise InputError(
            f"{out} holds a feature cache made from other {different} (its checkpoint: "
            f"{meta.get('checkpoint') or 'not recorded'}): give another --out or remove it"
        )
    return True


def differences(meta: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Names of what identifies a cache and is not the same in ``meta``; "" where all is."""
    return ", ".join(key for key in identity if meta.get(key) != identity[key])


def meta_of(identity: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The text of ``meta.json``: what identifies the cache, and what else is worth knowing of it."""
    return json.dumps({"format": FORMAT, "version": VERSION, **identity, **about}, indent=1)


def read_meta(folder: Path) -> dict[str, Any]:
    """What ``meta.json`` says; InputError where the folder is no cache of this version."""
    try:
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a feature cache (no {META}): make one with jepa embed") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / META} cannot be read ({error}): remove it and embed again") from error
    found = (meta.get("format"), meta.get("version")) if isinstance(meta, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise InputError(f"{folder} is of format {found}, expected {(FORMAT, VERSION)}: remove it and embed again")
    return meta
