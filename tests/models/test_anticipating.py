"""The forecast of what lies ahead is the predictor's, at the place that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.errors import InputError
from jepa.models.anticipating import Anticipating
from jepa.models.frozen import FrozenEncoder
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.masked import MaskedJEPA
from jepa.models.targets import EMA
from jepa.models.video import VideoViT
from jepa.schema import Sample

SIZE, FRAMES, D = (16, 24), 4, 12
GRID = (2, 2, 3)


def parts(form="rotary_interleaved", levels=None):
    torch.manual_seed(0)
    encoder = VideoViT(SIZE, FRAMES, 2, 8, D, 2, 2, positions=form, levels=levels)
    predictor = MaskPredictor(D, GRID, 2, 12, 2, 2, positions=form, levels=len(levels or (0,)))
    for value in predictor.parameters():  # fresh ones are so small that positions would hardly matter
        nn.init.normal_(value, std=0.5)
    return encoder, predictor


def film(count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, FRAMES, 3, *SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("form", ["rotary_interleaved", "rotary_tiled", "rotary_interpolated"])
def test_one_more_step_is_what_the_predictor_says_of_the_tokens_ahead(form):
    encoder, predictor = parts(form)
    world, video = Anticipating(FrozenEncoder(encoder, predictor), token=1), film()
    ahead = torch.tensor([8.0, 3.0, 0.0])  # frames: 4, 1 and 0 tubelets behind the last of the clip
    z = world.encode(Sample(video=video, ahead=ahead))
    assert z.shape == (3, 3, 6, D) and torch.equal(z[:, :2], encoder(video))
    for row, skipped in enumerate((4, 1, 0)):
        target = torch.arange(6)[None] + 12 + 6 * skipped  # positions N + HW * int(ahead / tubelet)
        context, seen = torch.arange(12)[None], encoder(video[row : row + 1]).flatten(1, 2)
        alone = predictor(seen, context, target, 1, (9, 2, 3))  # whatever the length of the grid is
        assert torch.allclose(z[row, 2], alone[0], atol=1e-5)
    assert not torch.allclose(z[0, 2], z[1, 2], atol=1e-3)


def test_the_sample_says_how_far_and_the_model_does_where_it_does_not():
    encoder, predictor = parts()
    video = film()
    world = Anticipating(FrozenEncoder(encoder, predictor), ahead=6)
    said = Anticipating(FrozenEncoder(encoder, predictor)).encode(Sample(video=video, ahead=torch.full((3,), 6.0)))
    assert torch.allclose(world.encode(Sample(video=video)), said, atol=1e-6)
    assert not any(value.requires_grad for value in world.parameters())
    other = Anticipating(FrozenEncoder(encoder, predictor), ahead=4)
    assert any(not torch.equal(a, b) for a, b in zip(world.state_dict().values(), other.state_dict().values()))


def test_a_masked_model_is_read_by_its_teacher_and_several_levels_by_the_last():
    encoder, predictor = parts(levels=(0, 1))
    model = MaskedJEPA(encoder, predictor, EMA())
    model.specs = FrozenEncoder(encoder, predictor).specs
    for value in model.target.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    z = Anticipating(model).encode(Sample(video=film()))
    assert z.shape == (3, 3, 6, D) and torch.equal(z[:, :2], model.reader(film()))
    assert not torch.allclose(z[:, :2], encoder(film()))


def test_what_cannot_anticipate_is_refused():
    encoder, predictor = parts()
    with pytest.raises(InputError, match="FrozenEncoder that has no masked predictor"):
        Anticipating(FrozenEncoder(encoder))
    with pytest.raises(InputError, match="sincos_uniform positions, which end with the clip"):
        Anticipating(FrozenEncoder(*parts("sincos_uniform")))
    with pytest.raises(InputError, match="one of the 2 mask tokens"):
        Anticipating(FrozenEncoder(encoder, predictor), token=2)
    with pytest.raises(InputError, match="ahead=-1"):
        Anticipating(FrozenEncoder(encoder, predictor), ahead=-1)
    with pytest.raises(InputError, match="forecasts 12 dimensions for latents of 24"):
        Anticipating(FrozenEncoder(VideoViT(SIZE, FRAMES, 2, 8, 24, 1, 2), predictor))
