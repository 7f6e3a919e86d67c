"""Every published fixture through the tool, files of other sizes made by a plain reading of the papers, and damage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from jepa.checkpoints.vjepa import encoder_to_published, predictor_to_published
from jepa.errors import InputError
from jepa.models.masked import MaskPredictor
from jepa.models.video import VideoViT
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
    ],
)
def test_a_file_that_is_no_fixture_is_refused_in_one_line(damage, tmp_path, capsys):
    assert main([damaged("vjepa2_tiny", tmp_path, damage)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1


def test_files_that_are_not_there_or_not_whole_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((HERE / "vjepa1_tiny.safetensors").read_bytes()[:5000])
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(InputError):
            differences(tmp_path / name)


def turned(x, index, side, head):
    """Rotary positions of V-JEPA 2 as published, one axis and one head size at a time: x [B,heads,L,head]."""
    each, out = 2 * (head // 3 // 2), []
    axes = (index // side**2, index // side % side, index % side)
    for number, axis in enumerate(axes):
        part = x[..., number * each : (number + 1) * each]
        angle = axis[:, None, :, None] * 10000.0 ** (-torch.arange(each // 2) / (each / 2))
        angle = torch.cat((angle, angle), dim=-1)
        swapped = torch.stack((-part[..., 1::2], part[..., 0::2]), dim=-1).flatten(-2)
        out.append(part * angle.cos() + swapped * angle.sin())
    return torch.cat((*out, x[..., 3 * each :]), dim=-1)


def transformer(state, prefix, x, heads, index, side):
    """Blocks as published, written out; ``side`` 0 means no rotary positions."""

    def linear(name, y):
        return F.linear(y, state[f"{prefix}.{i}.{name}.weight"], state[f"{prefix}.{i}.{name}.bias"])

    def norm(name, y):
        weight, bias = (state[f"{prefix}.{i}.{name}.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(y, y.shape[-1:], weight, bias, 1e-6)

    for i in range(sum(name.startswith(prefix) and name.endswith("norm1.bias") for name in state)):
        q, k, v = linear("attn.qkv", norm("norm1", x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        if side:
            q, k = (turned(y, index, side, q.shape[-1]) for y in (q, k))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear("attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        x = x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))
    return x


def published(rope, dim, heads, width, narrow_heads, side, frames):
    """A fixture of other sizes: random weights, and the outputs of the plain forward pass above."""
    form, grid = ("rotary_tiled" if rope else "sincos_uniform"), (frames // 2, side, side)
    encoder = encoder_to_published(VideoViT(4 * side, frames, 2, 4, dim, 3, heads, positions=form))
    predictor = predictor_to_published(MaskPredictor(dim, grid, 3, width, 2, narrow_heads, positions=form))
    for value in (*encoder.values(), *predictor.values()):
        value.add_(0.1 * torch.randn_like(value))  # stored positions too
    count = math.prod(grid)
    everything = torch.arange(count).expand(2, -1)
    order = torch.stack([torch.randperm(count) for _ in range(2)])
    context, target = order[:, : count // 2].sort(1).values, order[:, -5:].sort(1).values
    rows = torch.arange(2)[:, None]
    video = torch.randn(2, 3, frames, 4 * side, 4 * side)

    def encode(index):
        x = F.conv3d(video, encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"], (2, 4, 4))
        x = x.flatten(2).transpose(1, 2) + encoder.get("pos_embed", torch.zeros(1))
        x = transformer(encoder, "blocks", x[rows, index], heads, index, side * rope)
        return F.layer_norm(x, (dim,), encoder["norm.weight"], encoder["norm.bias"], 1e-6)

    def predict(z, token):
        stored = predictor.get("predictor_pos_embed", torch.zeros(1, count, width)).expand(2, -1, -1)
        z = F.linear(z, predictor["predictor_embed.weight"], predictor["predictor_embed.bias"]) + stored[rows, context]
        x = torch.cat((z, predictor[f"mask_tokens.{token}"] + stored[rows, target]), dim=1)
        x = transformer(predictor, "predictor_blocks", x, narrow_heads, torch.cat((context, target), 1), side * rope)
        x = F.layer_norm(x, (width,), predictor["predictor_norm.weight"], predictor["predictor_norm.bias"], 1e-6)
        return F.linear(x[:, -5:], predictor["predictor_proj.weight"], predictor["predictor_proj.bias"])

    full, z = encode(everything), encode(context)
    h = F.layer_norm(full, (dim,))[rows, target]
    forecasts = [predict(z, token) for token in range(3)]
    tensors = {"video": video, "context_indices": context, "target_indices": target}
    tensors |= {"full_tokens": full, "context_tokens": z, "loss": (forecasts[0] - h).abs().mean().view(1)}
    tensors |= {f"prediction_mask{token}": p for token, p in enumerate(forecasts)}
    tensors |= {f"encoder.{k}": v for k, v in encoder.items()} | {f"predictor.{k}": v for k, v in predictor.items()}
    about = {"num_frames": frames, "num_heads": heads, "use_rope": rope, "uniform_power": True}
    return tensors, {"encoder": json.dumps(about), "predictor": json.dumps({"num_heads": narrow_heads})}


@pytest.mark.parametrize(
    ("rope", "dim", "heads", "width", "narrow_heads", "side", "frames"),
    [
        (True, 40, 4, 32, 2, 3, 6),  # heads of 10 and 16
        (True, 45, 3, 28, 2, 2, 10),  # heads of 15 and 14
        (True, 64, 1, 20, 5, 4, 2),  # heads of 64 and 4
        (False, 40, 4, 32, 2, 3, 6),
        (False, 50, 5, 22, 2, 2, 12),
    ],
)
def test_other_sizes(rope, dim, heads, width, narrow_heads, side, frames, tmp_path):
    torch.manual_seed(0)
    tensors, metadata = published(rope, dim, heads, width, narrow_heads, side, frames)
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    found = differences(path)
    assert len(found) == 6 and max(found.values()) < LIMIT, found
