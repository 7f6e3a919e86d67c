"""Official files of random weights, by the list of their keys, and what the published modules make of them, plainly."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH, TUBELET, DIM, DEPTH, NARROW, NARROW_DEPTH, MASKS = 4, 2, 24, 4, 20, 2, 3
WRAPPED = {"ijepa": "module."}  # of every key; the others are wrapped twice


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def blocks(name: str, depth: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        shapes |= norm(f"{name}.{i}.norm1", width) | norm(f"{name}.{i}.norm2", width)
        shapes |= linear(f"{name}.{i}.attn.qkv", 3 * width, width) | linear(f"{name}.{i}.attn.proj", width, width)
        shapes |= linear(f"{name}.{i}.mlp.fc1", hidden, width) | linear(f"{name}.{i}.mlp.fc2", width, hidden)
    return shapes


def encoder_shapes(family: str, tokens: int, dim: int = DIM, depth: int = DEPTH) -> dict[str, tuple[int, ...]]:
    kernel = (PATCH, PATCH) if family == "ijepa" else (TUBELET, PATCH, PATCH)
    shapes = {"patch_embed.proj.weight": (dim, 3, *kernel), "patch_embed.proj.bias": (dim,)}
    shapes |= blocks("blocks", depth, dim, 3 * dim)
    if family in ("ijepa", "vjepa"):
        shapes["pos_embed"] = (1, tokens, dim)
    if family != "vjepa2_1":
        return shapes | norm("norm", dim)
    for i in range(4):
        shapes |= norm(f"norms_block.{i}", dim)
    shapes |= {"patch_embed_img.proj.weight": (dim, 3, 1, PATCH, PATCH), "patch_embed_img.proj.bias": (dim,)}
    return shapes | {"img_mod_embed": (1, 1, dim), "video_mod_embed": (1, 1, dim)}


def predictor_shapes(family: str, tokens: int, dim: int = DIM, out: int | None = None) -> dict[str, tuple[int, ...]]:
    levels = 4 if family == "vjepa2_1" else 1
    shapes = blocks("predictor_blocks", NARROW_DEPTH, NARROW, 4 * NARROW) | norm("predictor_norm", NARROW)
    shapes |= linear("predictor_proj", out or levels * dim, NARROW)
    if family in ("ijepa", "vjepa"):
        shapes["predictor_pos_embed"] = (1, tokens, NARROW)
    names = ["mask_token"] if family == "ijepa" else [f"mask_tokens.{i}" for i in range(MASKS - (family == "vjepa"))]
    shapes |= {name: (1, 1, NARROW) for name in names}
    if family != "vjepa2_1":
        return shapes | linear("predictor_embed", NARROW, dim)
    shapes |= linear("predictor_embed.0", dim, levels * dim) | linear("predictor_embed.2", NARROW, dim)
    shapes |= linear("predictor_proj_context", out or levels * dim, NARROW)
    return shapes | {"img_mod_embed": (1, 1, NARROW), "video_mod_embed": (1, 1, NARROW)}


def drawn(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    """Random weights, in the order of sorted names: the order of a file's keys means nothing."""
    return {prefix + name: 0.2 * torch.randn(shape) for name, shape in sorted(shapes.items())}


def checkpoint(family: str, tokens: int, dim: int = DIM, depth: int = DEPTH) -> dict:
    """An official file: both encoders, the predictor, and what training went on with."""
    prefix = WRAPPED.get(family, "module.backbone.")
    made = {
        "encoder": drawn(encoder_shapes(family, tokens, dim, depth), prefix),
        "predictor": drawn(predictor_shapes(family, tokens, dim), prefix),
        "target_encoder": drawn(encoder_shapes(family, tokens, dim, depth), prefix),
    }
    return made | {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 7, "loss": 0.4, "lr": 1e-3}


def stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}


def turn(x: Tensor, places: list[Tensor]) -> Tensor:
    """Rotary positions of V-JEPA 2.1, pair by pair: x [B,heads,L,head], the places [L] along each axis."""
    each, x = 2 * (x.shape[-1] // 3 // 2), x.clone()
    for axis, place in enumerate(places):
        for pair in range(each // 2):
            angle = place * 10000.0 ** (-2 * pair / each)
            first = axis * each + 2 * pair
            a, b = x[..., first].clone(), x[..., first + 1].clone()
            x[..., first] = a * angle.cos() - b * angle.sin()
            x[..., first + 1] = b * angle.cos() + a * angle.sin()
    return x


def places(index: Tensor, grid: tuple[int, int, int]) -> list[Tensor]:
    """Time, row and column of tokens ``[L]``, the last two laid over 16 x 16."""
    _, rows, columns = grid
    row, column = index // columns % rows, index % columns
    return [index // (rows * columns), row * 15 / (rows - 1), column * 15 / (columns - 1)]


def layer(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def normed(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def run(state: dict[str, Tensor], name: str, x: Tensor, heads: int, where: list[Tensor] | None) -> list[Tensor]:
    """What each block makes of the tokens ``[B,L,D]`` (rotated by place, where positions are not added)."""
    found = []
    for i in range(sum(key.startswith(f"{name}.") and key.endswith("norm1.bias") for key in state)):
        y = layer(state, f"{name}.{i}.attn.qkv", normed(state, f"{name}.{i}.norm1", x))
        q, k, v = y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if where is not None:
            q, k = turn(q, where), turn(k, where)
        share = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + layer(state, f"{name}.{i}.attn.proj", (share @ v).transpose(1, 2).flatten(2))
        y = F.gelu(layer(state, f"{name}.{i}.mlp.fc1", normed(state, f"{name}.{i}.norm2", x)))
        x = x + layer(state, f"{name}.{i}.mlp.fc2", y)
        found.append(x)
    return found
