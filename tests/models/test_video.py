"""The video transformer: what a token is, and that a kept token knows nothing of the others."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa.errors import InputError
from jepa.models.layers import Attention, SwiGLU
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


@pytest.mark.parametrize("form", FORMS)
def test_frames_may_be_rectangular(form):
    """Tokens lie in raster order: the first columns of a wide frame are those of a narrow one."""
    torch.manual_seed(0)
    model = VideoViT((16, 40), FRAMES, 2, 8, 48, 2, 2, positions=form).eval()
    video = torch.randint(0, 256, (2, FRAMES, 3, 16, 40), dtype=torch.uint8)
    z = model(video)
    assert model.grid == (2, 5) and z.shape == (2, 3, 10, 48)
    keep = torch.tensor([[4, 9, 13], [0, 29, 6]])
    hidden = torch.ones(2, 30, dtype=torch.bool).scatter_(1, keep, False).view(2, 3, 1, 1, 2, 5)
    hidden = hidden.repeat_interleave(2, 1).repeat_interleave(8, 4).repeat_interleave(8, 5).view(2, FRAMES, 1, 16, 40)
    assert torch.equal(model.visible(torch.where(hidden, 255 - video, video), keep), model.visible(video, keep))
    with pytest.raises(InputError, match=r"\[B,T,C,16,40\]" if form.startswith("sincos") else "expects uint8"):
        model(video[..., :20])


@pytest.mark.parametrize("form", ["rotary_tiled", "rotary_interleaved"])
def test_rotary_positions_take_clips_of_another_resolution(form):
    """Two models of one set of weights and two sizes are one; a token of a larger clip knows its own row."""
    large = torch.randint(0, 256, (1, 4, 3, 40, 32), dtype=torch.uint8)
    small, big = encoder(form), VideoViT((40, 32), FRAMES, 2, 8, 48, 2, 2, positions=form).eval()
    big.load_state_dict(small.state_dict())
    assert torch.allclose(small(large), big(large), atol=1e-6) and small(large).shape == (1, 2, 20, 48)
    keep = torch.tensor([[3, 17, 21]])
    assert torch.allclose(small.visible(large, keep), big.visible(large, keep), atol=1e-6)
    assert small.clip_grid(large) == (2, 5, 4)


def test_added_positions_do_not():
    with pytest.raises(InputError, match=r"\[B,T,C,24,24\]"):
        encoder("sincos")(torch.zeros(1, 4, 3, 40, 40, dtype=torch.uint8))


@pytest.mark.parametrize(("hidden", "expected"), [(4096, 2736), (96, 64), (13, 8), (24, 16)])
def test_swiglu_is_gated_and_two_thirds_as_wide(hidden, expected):
    part, x = SwiGLU(12, hidden), torch.randn(2, 3, 12)
    assert part.fc1.weight.shape == part.fc2.weight.shape == (expected, 12)
    gate, value = (torch.einsum("bld,hd->blh", x, layer.weight) + layer.bias for layer in (part.fc1, part.fc2))
    y = torch.einsum("blh,dh->bld", gate * gate.sigmoid() * value, part.fc3.weight) + part.fc3.bias
    assert torch.allclose(part(x), y, atol=1e-5)


def test_swiglu_blocks_begin_small_too():
    torch.manual_seed(0)
    model = VideoViT(SIZE, FRAMES, 2, 8, 48, 2, 2, swiglu=True)
    first, second = (block.mlp.fc3.weight.std() * (2 * n) ** 0.5 for n, block in enumerate(model.blocks, 1))
    assert torch.allclose(first, torch.tensor(0.02), rtol=0.1) and torch.allclose(first, second, rtol=0.1)
    assert model.blocks[1].mlp.fc2.weight.std() > 0.018
    assert model(clip()).shape == (2, 3, 9, 48)


@pytest.mark.parametrize("form", ["rotary_interleaved", "sincos"])
def test_recomputing_gives_the_same_gradients_and_keeps_less(form):
    plain, frugal = (VideoViT(SIZE, FRAMES, 2, 8, 48, 3, 2, positions=form, recompute=flag) for flag in (False, True))
    frugal.load_state_dict(plain.state_dict())
    gradients, kept = [], []
    for model in (plain, frugal):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            loss = model(clip()).square().sum()
        loss.backward()
        gradients.append([value.grad for value in model.parameters()])
        kept.append(sum(sizes))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients))
    assert kept[1] < kept[0] / 3
    with torch.no_grad():
        assert torch.equal(plain(clip()), frugal(clip()))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("form", ["rotary_interleaved", "sincos"])
def test_it_compiles_without_graph_breaks(form, recompute, lower):
    """In bfloat16 too, where the layers compute in less than the angles are in."""
    torch._dynamo.reset()  # or the cases above would count as compilations of one function, of which few are allowed
    model, keep = VideoViT(SIZE, FRAMES, 2, 8, 48, 2, 2, positions=form, recompute=recompute), choice()
    compiled = torch.compile(model.visible, backend="aot_eager", fullgraph=True)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        assert torch.allclose(compiled(clip(), keep), model.visible(clip(), keep), atol=1e-5)
        assert torch.allclose(whole(clip()), model(clip()), atol=1e-5)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (clip(frames=5), "multiple of 2 up to 6"),
        (clip(frames=8), "multiple of 2 up to 6"),
        (clip()[..., :20], "expects uint8"),
        (clip().float(), "expects uint8"),
    ],
)
def test_a_video_that_does_not_fit_is_refused(video, message):
    with pytest.raises(InputError, match=message):
        encoder()(video)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"size": 20}, {"size": (16, 20)}, {"frames": 5}, {"heads": 5}, {"positions": "rotary"}),
        *({"positions": "sincos_2d"}, {"levels": ()}, {"levels": (1,)}, {"levels": (0, 0)}, {"levels": (-1, 0)}),
        {"positions": "sincos_2d", "frames": 2, "dim": 54},
        *({name: 0} for name in ("size", "frames", "tubelet", "patch", "dim", "depth", "heads", "mlp_ratio")),
        *({"depth": -1}, {"mlp_ratio": -1.0}, {"mlp_ratio": float("inf")}, {"mlp_ratio": float("nan")}),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments):
    with pytest.raises(InputError) as error:
        VideoViT(**({"size": 16, "frames": 4, "dim": 48, "depth": 1, "heads": 2} | arguments))
    assert "\n" not in str(error.value)
