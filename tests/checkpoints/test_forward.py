"""Official weights of I-JEPA and V-JEPA 2.1 through our modules, against a plain reading of the published forwards.

V-JEPA and V-JEPA 2 are compared in tests/parity and, with HF transformers, in test_hf.py.
"""

from __future__ import annotations

import pytest
import torch
from official import DIM, NARROW, PATCH, checkpoint, layer, normed, places, run, stripped
from torch.nn import functional as F

from jepa.checkpoints import load
from jepa.schema import Mask, Sample

LIMIT = 1e-5


def pixels(frames, height, width):
    torch.manual_seed(1)
    video = torch.randint(0, 256, (2, frames, 3, height, width), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return video, (video / 255 - mean) / std


def masks(count, context, target):
    """Two disjoint sorted subsets of the tokens of two clips."""
    order = torch.stack([torch.randperm(count) for _ in range(2)])
    return order[:, :context].sort(1).values, order[:, context : context + target].sort(1).values


def loaded(folder, family, tokens, **given):
    torch.manual_seed(0)
    held = checkpoint(family, tokens)
    torch.save(held, folder / "published.pt")
    model = load(str(folder / "published.pt"), **given)
    return model, {part: stripped(held[part]) for part in ("encoder", "predictor", "target_encoder")}


@pytest.mark.parametrize("side", [3, 4])
def test_ijepa(tmp_path, side):
    model, states = loaded(tmp_path, "ijepa", side**2, heads=3, predictor_heads=5)
    video, x = pixels(1, side * PATCH, side * PATCH)
    context, target = masks(side**2, 5, 3)
    rows = torch.arange(2)[:, None]

    def encode(state, keep=None):
        weights = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
        z = F.conv2d(x[:, 0], *weights, PATCH).flatten(2).transpose(1, 2) + state["pos_embed"]
        z = z if keep is None else z[rows, keep]
        return normed(state, "norm", run(state, "blocks", z, 3, None)[-1])

    def predict(z):
        state = states["predictor"]
        where = state["predictor_pos_embed"].expand(2, -1, -1)
        z = layer(state, "predictor_embed", z) + where[rows, context]
        z = torch.cat((z, state["mask_token"] + where[rows, target]), dim=1)
        z = run(state, "predictor_blocks", z, 5, None)[-1]
        return layer(state, "predictor_proj", normed(state, "predictor_norm", z[:, 5:]))

    z = encode(states["encoder"], context)
    h = F.layer_norm(encode(states["target_encoder"]), (DIM,))[rows, target]
    (made,) = model(video, [Mask(context, target[:, None])])
    assert (made.z[:, 0] - z).abs().max() < LIMIT
    assert (made.p[:, 0] - predict(z)).abs().max() < LIMIT
    assert (made.h[:, 0] - h).abs().max() < LIMIT
    assert (model.encode(Sample(video=video))[:, 0] - encode(states["target_encoder"])).abs().max() < LIMIT


@pytest.mark.parametrize(("frames", "height", "width"), [(6, 12, 12), (4, 12, 20), (1, 16, 16)])
def test_vjepa2_1(tmp_path, frames, height, width):
    model, states = loaded(tmp_path, "vjepa2_1", 0, heads=2, predictor_heads=2, size=12, frames=6)
    video, x = pixels(frames, height, width)
    image, grid = frames == 1, (max(1, frames // 2), height // PATCH, width // PATCH)
    count = grid[0] * grid[1] * grid[2]
    context, target = masks(count, count // 2, 4)
    kind = "img" if image else "video"

    def encode(state, keep):
        """All four levels of one clip's tokens, each normalised."""
        name = "patch_embed_img.proj" if image else "patch_embed.proj"
        weights = state[f"{name}.weight"], state[f"{name}.bias"]
        stride = (1 if image else 2, PATCH, PATCH)
        z = F.conv3d(x.transpose(1, 2), *weights, stride).flatten(2).transpose(1, 2) + state[f"{kind}_mod_embed"]
        made = []
        for clip, index in zip(z, keep):
            levels = run(state, "blocks", clip[index][None], 2, places(index, grid))
            made.append(torch.cat([normed(state, f"norms_block.{i}", level) for i, level in enumerate(levels)], -1))
        return torch.cat(made)

    def predict(z):
        state, made = states["predictor"], []
        z = layer(state, "predictor_embed.2", F.gelu(layer(state, "predictor_embed.0", z)))
        for clip, seen, asked in zip(z, context, target):
            y = torch.cat((clip, state["mask_tokens.0"][0].expand(len(asked), NARROW)))[None]
            y = y + state[f"{kind}_mod_embed"]
            y = run(state, "predictor_blocks", y, 2, places(torch.cat((seen, asked)), grid))[-1]
            made.append(normed(state, "predictor_norm", y))
        seen, asked = torch.cat(made).split((context.shape[1], target.shape[1]), dim=1)
        return layer(state, "predictor_proj_context", seen), layer(state, "predictor_proj", asked)

    z = encode(states["encoder"], context)
    at_context, at_target = predict(z)
    everything = encode(states["target_encoder"], torch.arange(count).expand(2, -1))
    h = F.layer_norm(everything.unflatten(-1, (4, DIM)), (DIM,)).flatten(2)[torch.arange(2)[:, None], target]
    (made,) = model(video, [Mask(context, target[:, None])])
    assert (made.z[:, 0] - z).abs().max() < LIMIT
    assert (made.p[:, 0] - at_target).abs().max() < LIMIT
    assert (made.context[:, 0] - at_context).abs().max() < LIMIT
    assert (made.h[:, 0] - h).abs().max() < LIMIT
    last = model.encode(Sample(video=video)).flatten(1, 2)
    assert (last - everything[..., -DIM:]).abs().max() < LIMIT
