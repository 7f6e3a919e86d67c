"""Official weights forecast what lies ahead: V-JEPA 2.1 against a plain reading of the published forward."""

from __future__ import annotations

import pytest
import torch
from official import DIM, NARROW, PATCH, checkpoint, layer, normed, places, run, stripped
from torch.nn import functional as F

from jepa.checkpoints import load
from jepa.errors import InputError
from jepa.models.anticipating import Anticipating
from jepa.schema import Sample

SIDE, FRAMES = 3, 6  # of the grid, of the clip
SIZES = {"heads": 2, "predictor_heads": 2, "size": SIDE * PATCH, "frames": FRAMES}


def loaded(folder, family):
    torch.manual_seed(0)
    held = checkpoint(family, SIDE**2 * FRAMES // 2)
    torch.save(held, folder / "published.pt")
    given = {"heads": 2, "frames": FRAMES} if family == "vjepa" else SIZES
    return load(str(folder / "published.pt"), **given), held


def clip():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, FRAMES, 3, SIDE * PATCH, SIDE * PATCH), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("token", [0, 1])
def test_the_forecast_is_that_of_the_published_predictor_at_later_positions(tmp_path, token):
    model, held = loaded(tmp_path, "vjepa2_1")
    state, video = stripped(held["predictor"]), clip()
    z = Anticipating(model, token=token).encode(Sample(video=video, ahead=torch.tensor([8.0, 3.0])))
    seen = model.reader.latents(video).flatten(1, 2)
    count, x = seen.shape[1], layer(state, "predictor_embed.0", seen)
    x = layer(state, "predictor_embed.2", F.gelu(x))
    for row, skipped in enumerate((4, 1)):
        asked = count + SIDE**2 * skipped + torch.arange(SIDE**2)
        y = torch.cat((x[row], state[f"mask_tokens.{token}"][0].expand(len(asked), NARROW)))[None]
        where = places(torch.cat((torch.arange(count), asked)), (12, SIDE, SIDE))
        y = run(state, "predictor_blocks", y + state["video_mod_embed"], 2, where)[-1][:, count:]
        p = layer(state, "predictor_proj", normed(state, "predictor_norm", y))[0, :, -DIM:]
        assert (z[row, -1] - p).abs().max() < 1e-5
    assert torch.equal(z[:, :-1], model.encode(Sample(video=video)))


def test_v_jepa_2_anticipates_and_v_jepa_cannot(tmp_path):
    model, _ = loaded(tmp_path, "vjepa2")
    assert Anticipating(model).encode(Sample(video=clip())).shape == (2, FRAMES // 2 + 1, SIDE**2, DIM)
    with pytest.raises(InputError, match="sincos_uniform positions, which end with the clip"):
        Anticipating(loaded(tmp_path, "vjepa")[0])
