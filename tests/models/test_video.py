"""The video transformer: what a token is, and that a kept token knows nothing of the others."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa.errors import InputError
from jepa.models.layers import Attention
from jepa.models.positions import Form
from jepa.models.video import VideoViT

FORMS = [form for form in Form.__args__ if form != "sincos_2d"]
FRAMES, SIZE, TOKENS = 6, 24, 27  # 3 tubelets of 3 x 3 patches


def encoder(form="rotary_interleaved", norm=False):
    torch.manual_seed(0)
    return VideoViT(SIZE, FRAMES, 2, 8, 48, 2, 2, positions=form, norm=norm).eval()


def clip(batch=2, frames=FRAMES):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, frames, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)


def choice(batch=2, count=10):
    draw = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(TOKENS, generator=draw)[:count] for _ in range(batch)])


@pytest.mark.parametrize("form", FORMS)
def test_latents_of_a_video(form):
    z = encoder(form)(clip())
    assert z.shape == (2, 3, 9, 48) and z.isfinite().all()
    assert torch.allclose(encoder(form)(clip()[1:]), z[1:], atol=1e-5)


def test_norm_puts_latents_on_one_sphere():
    assert torch.allclose(encoder(norm=True)(clip()).mean(-1), torch.zeros(()), atol=1e-5)


def test_a_token_is_a_product_of_its_tubelet():
    """In raster order of (tubelet, row, column), with the weight's [C,frame,y,x]."""
    model, pixels = encoder(), torch.randn(2, FRAMES, 3, SIZE, SIZE)
    tokens, weight = model.embed(pixels), model.patch_embed.weight
    for number in (0, 5, 12, 26):
        step, row, column = number // 9, number // 3 % 3, number % 3
        tubelet = pixels[:, 2 * step : 2 * step + 2, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        expected = torch.einsum("btchw,dcthw->bd", tubelet, weight) + model.patch_embed.bias
        assert torch.allclose(tokens[:, number], expected, atol=1e-5)


def test_bytes_are_standardised_with_the_statistics_of_imagenet():
    model, video = encoder(), clip()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    floats = model.encode(model.embed((video / 255 - mean) / std))
    assert torch.allclose(model(video).flatten(1, 2), floats, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_visible_is_forward_with_attention_among_the_kept(form):
    """All tokens go in, but keys outside of the kept are masked in every layer: the kept rows are those of visible."""
    model, video, keep = encoder(form), clip(), choice()
    kept = torch.zeros(2, TOKENS, dtype=torch.bool).scatter_(1, keep, True)
    z = model.visible(video, keep)
    for block in model.blocks:
        block.attn.forward = partial(Attention.forward, block.attn, mask=kept[:, None, None])
    masked = model(video).flatten(1, 2)
    assert torch.allclose(z, masked[torch.arange(2)[:, None], keep], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_visible_with_every_token_is_forward(form):
    model, video = encoder(form), clip()
    everything = torch.arange(TOKENS).expand(2, -1)
    assert torch.allclose(model.visible(video, everything), model(video).flatten(1, 2), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_kept_tokens_may_come_in_any_order(form):
    model, video, keep = encoder(form), clip(), choice()
    order = torch.randperm(keep.shape[1])
    assert torch.allclose(model.visible(video, keep[:, order]), model.visible(video, keep)[:, order], atol=1e-5)


def test_hidden_pixels_are_never_read():
    model, video, keep = encoder(), clip(), choice()
    hidden = torch.ones(2, TOKENS, dtype=torch.bool).scatter_(1, keep, False).view(2, 3, 1, 1, 3, 3)
    hidden = hidden.repeat_interleave(2, 1).repeat_interleave(8, 4).repeat_interleave(8, 5).view(2, FRAMES, 1, 24, 24)
    other = torch.where(hidden, 255 - video, video)
    assert not torch.equal(other, video)
    assert torch.equal(model.visible(other, keep), model.visible(video, keep))


@pytest.mark.parametrize("form", FORMS)
def test_a_shorter_video_has_the_first_positions(form):
    model, video = encoder(form), clip()
    first = torch.arange(18).expand(2, -1)
    assert torch.allclose(model(video[:, :4]).flatten(1, 2), model.visible(video, first), atol=1e-5)


def test_several_masks_go_in_one_pass():
    model, video = encoder(), clip()
    masks = choice(), choice().flip(0)
    together = model.encode(model.embed(model.standardise(video)), torch.cat(masks))
    for keep, z in zip(masks, together.chunk(2)):
        assert torch.allclose(z, model.visible(video, keep), atol=1e-5)


def test_deep_blocks_begin_small():
    model = encoder()
    first, second = (block.mlp[-1].weight.std() * (2 * n) ** 0.5 for n, block in enumerate(model.blocks, 1))
    assert torch.allclose(first, torch.tensor(0.02), rtol=0.05) and torch.allclose(first, second, rtol=0.05)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (clip(frames=5), "multiple of 2 up to 6"),
        (clip(frames=8), "multiple of 2 up to 6"),
        (clip()[..., :16], "expects uint8"),
        (clip().float(), "expects uint8"),
    ],
)
def test_a_video_that_does_not_fit_is_refused(video, message):
    with pytest.raises(InputError, match=message):
        encoder()(video)


@pytest.mark.parametrize(
    "arguments", [{"size": 20}, {"frames": 5}, {"heads": 5}, {"positions": "rotary"}, {"positions": "sincos_2d"}]
)
def test_sizes_that_do_not_fit_are_refused(arguments):
    with pytest.raises(InputError):
        VideoViT(**({"size": 16, "frames": 4, "dim": 48, "depth": 1, "heads": 2} | arguments))
