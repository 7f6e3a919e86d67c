"""Every published fixture through the tool, files of other sizes made by a plain reading of the papers, and damage."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from jepa.errors import InputError
from tools.parity import LIMIT, differences, main

HERE = Path(__file__).parent
FIXTURES = sorted(path.name for path in HERE.glob("*.safetensors"))
WEIGHTS = {
    "vjepa1_tiny": ("encoder.blocks.0.attn.qkv.weight", "predictor.mask_tokens.1", "predictor.predictor_proj.bias"),
    "vjepa2_tiny": ("encoder.blocks.1.mlp.fc2.bias", "encoder.norm.weight", "predictor.predictor_blocks.0.norm1.bias"),
    "attentive_depth4_tiny": ("classifier.pooler.blocks.2.norm1.weight", "classifier.linear.weight"),
    "sigreg": ("directions",),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_published_outputs_are_ours(name, capsys):
    assert main([str(HERE / name)]) == 0
    assert f"{name}: largest difference" in capsys.readouterr().out


def damaged(name, folder, damage):
    with safe_open(HERE / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(HERE / f"{name}.safetensors")
    damage(tensors, metadata)
    save_file(tensors, folder / f"{name}.safetensors", metadata)
    return str(folder / f"{name}.safetensors")


@pytest.mark.parametrize(("name", "weight"), [(name, weight) for name in WEIGHTS for weight in WEIGHTS[name]])
def test_one_perturbed_number_is_noticed(name, weight, tmp_path, capsys):
    def perturb(tensors, metadata):
        tensors[weight].view(-1)[0] += 0.1

    assert main([damaged(name, tmp_path, perturb)]) == 1
    assert "NOT below" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_below_the_limit(value, tmp_path):
    def poison(tensors, metadata):
        tensors["full_tokens"].view(-1)[7] = value

    assert main([damaged("vjepa2_tiny", tmp_path, poison)]) == 1


def without(key):
    return lambda tensors, metadata: (tensors.pop(key, None), metadata.pop(key, None))


def said(key, name, value):
    """The metadata says something else of a module."""
    return lambda tensors, metadata: metadata.update({key: json.dumps(json.loads(metadata[key]) | {name: value})})


def changed(key, change):
    return lambda tensors, metadata: tensors.update({key: change(tensors[key]).contiguous()})


@pytest.mark.parametrize(
    "damage",
    [
        without("video"),
        without("loss"),
        without("encoder"),
        without("full_tokens"),
        without("encoder.norm.weight"),
        lambda tensors, metadata: tensors.update(mystery=torch.zeros(1)),
        lambda tensors, metadata: tensors.update({"encoder.mystery": torch.zeros(1)}),
        lambda tensors, metadata: tensors.update(loss=torch.zeros(2)),
        lambda tensors, metadata: metadata.update(encoder="{"),
        lambda tensors, metadata: metadata.update(encoder="vit_tiny"),
        *(said("encoder", "num_heads", value) for value in ("2", None, 0, 2.0, 5)),
        *(said("encoder", "num_frames", value) for value in (None, "8", -1)),
        *(said("encoder", "img_size", value) for value in (None, 60, [64, 64, 64], [0, 0], [64, "a"])),
        said("encoder", "use_rope", "no"),
        said("predictor", "num_heads", None),
        *(changed("context_indices", change) for change in (lambda x: x + 60, lambda x: x - 60, torch.Tensor.float)),
        changed("target_indices", lambda x: x[:, :0]),
        changed("full_tokens", lambda x: x > 0),
        lambda tensors, metadata: tensors.update(prediction_mask7=tensors["prediction_mask0"].clone()),
        changed("video", torch.flatten),
    ],
)
def test_a_file_that_is_no_fixture_is_refused_in_one_line(damage, tmp_path, capsys):
    assert main([damaged("vjepa2_tiny", tmp_path, damage)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("attentive_depth4_tiny", lambda tensors, metadata: metadata.update(config="x")),
        ("attentive_depth4_tiny", said("config", "num_heads", 0)),
        ("vjepa2_ac_tiny", said("config", "patch_size", "16")),
        ("vjepa2_ac_tiny", said("config", "use_extrinsics", None)),
        ("lewm_tiny", said("config", "predictor_heads", None)),
        ("lewm_tiny", changed("actions", lambda x: x[0])),
    ],
)
def test_other_kinds_are_refused_in_one_line_too(name, damage, tmp_path, capsys):
    assert main([damaged(name, tmp_path, damage)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_that_are_not_there_or_not_whole_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((HERE / "vjepa1_tiny.safetensors").read_bytes()[:5000])
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(InputError):
            differences(tmp_path / name)


def turned(x, index, rows, columns, head):
    """Rotary positions of V-JEPA 2 as published, one axis and one head size at a time: x [B,heads,L,head]."""
    each, out = 2 * (head // 3 // 2), []
    axes = (index // (rows * columns), index % (rows * columns) // columns, index % columns)
    for number, axis in enumerate(axes):
        part = x[..., number * each : (number + 1) * each]
        angle = axis[:, None, :, None] * 10000.0 ** (-torch.arange(each // 2) / (each / 2))
        angle = torch.cat((angle, angle), dim=-1)
        swapped = torch.stack((-part[..., 1::2], part[..., 0::2]), dim=-1).flatten(-2)
        out.append(part * angle.cos() + swapped * angle.sin())
    return torch.cat((*out, x[..., 3 * each :]), dim=-1)


def transformer(state, prefix, x, heads, index, sides, eps=1e-6):
    """Blocks as published, written out; ``sides`` are rows and columns, None where positions are not rotary."""

    def linear(name, y):
        return F.linear(y, state[f"{prefix}.{i}.{name}.weight"], state[f"{prefix}.{i}.{name}.bias"])

    def norm(name, y):
        weight, bias = (state[f"{prefix}.{i}.{name}.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(y, y.shape[-1:], weight, bias, eps)

    for i in range(sum(name.startswith(f"{prefix}.") and name.endswith("norm1.bias") for name in state)):
        q, k, v = linear("attn.qkv", norm("norm1", x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if sides:
            q, k = (turned(y, index, *sides, y.shape[-1]) for y in (q, k))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear("attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        x = x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))
    return x


@dataclass(frozen=True)
class Variant:
    """Sizes of a fixture; the predictor of V-JEPA 2 as published takes every frame for square."""

    rope: bool
    dim: int
    heads: int
    width: int
    narrow_heads: int
    rows: int
    columns: int
    frames: int
    depth: int = 3
    ratio: float = 4.0
    masks: int = 3
    tubelet: int = 2
    uniform: bool = True
    square: bool = False


def shapes(width, depth, hidden, blocks):
    """Of the blocks of a transformer, under their published names."""
    made = {}
    for i in range(depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            made |= {f"{blocks}.{i}.{name}.weight": (rows, columns), f"{blocks}.{i}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            made |= {f"{blocks}.{i}.{name}.weight": (width,), f"{blocks}.{i}.{name}.bias": (width,)}
    return made


def published(about):
    """A fixture of other sizes: random weights, and the outputs of the plain forward pass above."""
    dim, width, count = about.dim, about.width, about.frames // about.tubelet * about.rows * about.columns
    encoder = shapes(dim, about.depth, int(dim * about.ratio), "blocks")
    encoder |= {"patch_embed.proj.weight": (dim, 3, about.tubelet, 4, 4), "patch_embed.proj.bias": (dim,)}
    encoder |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    predictor = shapes(width, 2, 4 * width, "predictor_blocks")
    predictor |= {"predictor_embed.weight": (width, dim), "predictor_embed.bias": (width,)}
    predictor |= {"predictor_proj.weight": (dim, width), "predictor_proj.bias": (dim,)}
    predictor |= {"predictor_norm.weight": (width,), "predictor_norm.bias": (width,)}
    predictor |= {f"mask_tokens.{i}": (1, 1, width) for i in range(about.masks)}
    if not about.rope:  # stored positions, whatever they are
        encoder["pos_embed"], predictor["predictor_pos_embed"] = (1, count, dim), (1, count, width)
    encoder, predictor = ({k: 0.1 * torch.randn(shape) for k, shape in part.items()} for part in (encoder, predictor))
    everything = torch.arange(count).expand(2, -1)
    order = torch.stack([torch.randperm(count) for _ in range(2)])
    context, target = order[:, : count // 2].sort(1).values, order[:, -5:].sort(1).values
    rows = torch.arange(2)[:, None]
    video = torch.randn(2, 3, about.frames, 4 * about.rows, 4 * about.columns)
    sides = (about.rows, about.columns) if about.rope else None
    narrow_sides = (about.rows, about.rows) if about.rope and about.square else sides

    def encode(index):
        stride = (about.tubelet, 4, 4)
        x = F.conv3d(video, encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"], stride)
        x = x.flatten(2).transpose(1, 2) + encoder.get("pos_embed", torch.zeros(1))
        x = transformer(encoder, "blocks", x[rows, index], about.heads, index, sides)
        return F.layer_norm(x, (dim,), encoder["norm.weight"], encoder["norm.bias"], 1e-6)

    def predict(z, token):
        stored = predictor.get("predictor_pos_embed", torch.zeros(1, count, width)).expand(2, -1, -1)
        z = F.linear(z, predictor["predictor_embed.weight"], predictor["predictor_embed.bias"]) + stored[rows, context]
        x = torch.cat((z, predictor[f"mask_tokens.{token}"] + stored[rows, target]), dim=1)
        index = torch.cat((context, target), 1)
        x = transformer(predictor, "predictor_blocks", x, about.narrow_heads, index, narrow_sides)
        x = F.layer_norm(x, (width,), predictor["predictor_norm.weight"], predictor["predictor_norm.bias"], 1e-6)
        return F.linear(x[:, -5:], predictor["predictor_proj.weight"], predictor["predictor_proj.bias"])

    full, z = encode(everything), encode(context)
    h = F.layer_norm(full, (dim,))[rows, target]
    forecasts = [predict(z, token) for token in range(about.masks)]
    tensors = {"video": video, "context_indices": context, "target_indices": target}
    tensors |= {"full_tokens": full, "context_tokens": z, "loss": (forecasts[0] - h).abs().mean().view(1)}
    tensors |= {f"prediction_mask{token}": p for token, p in enumerate(forecasts)}
    tensors |= {f"encoder.{k}": v for k, v in encoder.items()} | {f"predictor.{k}": v for k, v in predictor.items()}
    size = 4 * about.rows if about.rows == about.columns else [4 * about.rows, 4 * about.columns]
    said = {"img_size": size, "num_frames": about.frames, "num_heads": about.heads, "use_rope": about.rope}
    said |= {"patch_size": 4, "tubelet_size": about.tubelet, "embed_dim": dim, "depth": about.depth}
    said |= {"mlp_ratio": about.ratio, "uniform_power": about.uniform}
    return tensors, {"encoder": json.dumps(said), "predictor": json.dumps({"num_heads": about.narrow_heads})}


@pytest.mark.parametrize(
    "about",
    [
        Variant(True, 40, 4, 32, 2, 3, 3, 6),  # heads of 10 and 16
        Variant(True, 45, 3, 28, 2, 2, 2, 10),  # heads of 15 and 14
        Variant(True, 64, 1, 20, 5, 4, 4, 2),  # heads of 64 and 4
        Variant(True, 66, 3, 34, 2, 3, 3, 8, ratio=48 / 11, masks=10),  # heads of 22 and 17
        Variant(True, 39, 3, 24, 4, 2, 5, 4, masks=1),  # heads of 13 and 6; not square
        Variant(True, 48, 2, 24, 2, 2, 3, 8, square=True),
        Variant(True, 48, 2, 24, 2, 5, 2, 8, square=True),
        Variant(True, 48, 2, 24, 2, 3, 3, 6, depth=1, tubelet=3),
        Variant(True, 48, 2, 24, 2, 3, 3, 4, tubelet=1),
        Variant(False, 40, 4, 32, 2, 3, 3, 6),
        Variant(False, 50, 5, 22, 2, 2, 2, 12, depth=5),
        Variant(False, 48, 4, 32, 4, 2, 4, 6, ratio=3.0, masks=2),
        Variant(False, 64, 4, 32, 4, 3, 3, 6, uniform=False),
    ],
    ids=str,
)
def test_other_sizes(about, tmp_path):
    torch.manual_seed(0)
    tensors, metadata = published(about)
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    found = differences(path)
    assert len(found) == 3 + about.masks and max(found.values()) < LIMIT, found


def probed(dim, heads, depth, queries, outputs, every):
    """A fixture of an attentive probe of other sizes; ``every`` query is read, or the first alone."""
    block = "pooler.cross_attention_block"
    state = shapes(dim, depth - 1, 4 * dim, "pooler.blocks") | {"pooler.query_tokens": (1, queries, dim)}
    layers = {f"{block}.xattn.q": (dim, dim), f"{block}.xattn.kv": (2 * dim, dim), "linear": (outputs, dim)}
    layers |= {f"{block}.mlp.fc1": (4 * dim, dim), f"{block}.mlp.fc2": (dim, 4 * dim)}
    state |= {f"{name}.weight": shape for name, shape in layers.items()}
    state |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    state |= {f"{block}.{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    state = {name: 0.2 * torch.randn(shape) for name, shape in state.items()}
    tokens = torch.randn(3, 19, dim)

    def linear(name, y):
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, y):
        return F.layer_norm(y, (dim,), state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"], 1e-5)

    x = transformer(state, "pooler.blocks", tokens, heads, None, None, eps=1e-5)
    query = state["pooler.query_tokens"].expand(3, -1, -1)
    k, v = linear(f"{block}.xattn.kv", norm("norm1", x)).chunk(2, dim=-1)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (linear(f"{block}.xattn.q", query), k, v))
    share = (q @ k.transpose(-1, -2) / math.sqrt(dim // heads)).softmax(-1)
    query = query + (share @ v).transpose(1, 2).flatten(2)
    query = query + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm("norm2", query))))
    logits = linear("linear", query if every else query[:, 0])
    about = {"embed_dim": dim, "num_heads": heads, "depth": depth, "num_classes": outputs}
    tensors = {f"classifier.{name}": value for name, value in state.items()} | {"tokens": tokens, "logits": logits}
    return tensors, {"config": json.dumps(about)}


@pytest.mark.parametrize(
    ("dim", "heads", "depth", "queries", "outputs", "every"),
    [
        (20, 2, 1, 1, 3, False),
        (33, 3, 2, 1, 7, False),
        (64, 16, 4, 1, 2, False),
        (45, 5, 3, 3, 4, True),
        (24, 1, 6, 2, 5, False),
    ],
)
def test_other_probes(dim, heads, depth, queries, outputs, every, tmp_path):
    torch.manual_seed(0)
    tensors, metadata = probed(dim, heads, depth, queries, outputs, every)
    path = tmp_path / "attentive_other.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    assert differences(path)["logits"] < LIMIT
