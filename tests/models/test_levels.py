"""V-JEPA 2.1: several levels, two tokenisers, positions on one grid, and forecasts of what is seen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from jepa.errors import InputError
from jepa.models.layers import layer_norm, take
from jepa.models.masked import MaskedJEPA, MaskPredictor
from jepa.models.positions import rotary_grid
from jepa.models.targets import EMA, Teacher
from jepa.models.video import VideoViT
from jepa.objectives.prediction import Regression
from jepa.schema import Mask

GRID, DIM, LEVELS = (2, 3, 3), 24, (0, 2, 3)


def encoder(**changes):
    torch.manual_seed(0)
    options = {"levels": LEVELS, "images": True, "positions": "rotary_interpolated"} | changes
    model = VideoViT(24, 4, 2, 8, DIM, 4, 2, **options)
    for name, value in model.named_parameters():
        if "embedding" in name or "norm" in name:
            torch.nn.init.normal_(value)  # for their place to be seen
    return model.eval()


def predictor(**changes):
    options = {"levels": 3, "context": True, "images": True, "positions": "rotary_interpolated"} | changes
    model = MaskPredictor(DIM, GRID, 2, 16, 2, 2, **options)
    torch.nn.init.normal_(model.mask_tokens)
    return model.eval()


def clip(frames=4):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, frames, 3, 24, 24), dtype=torch.uint8, generator=draw)


def mask(context, length, targets=1, count=18):
    draw = torch.Generator().manual_seed(2)
    order = torch.stack([torch.randperm(count, generator=draw) for _ in range(2)])
    return Mask(order[:, :context], order[:, context : context + targets * length].view(2, targets, length))


def test_levels_are_the_blocks_outputs_under_norms_of_their_own():
    model, seen = encoder(), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, made: seen.append(made))
    z = model.latents(clip())
    expected = torch.cat([norm(seen[i]) for norm, i in zip(model.level_norms, LEVELS)], dim=-1)
    assert z.shape == (2, 2, 9, 3 * DIM) and model.width == 3 * DIM
    assert torch.equal(z.flatten(1, 2), expected)
    assert torch.equal(model(clip()), z[..., -DIM:])
    assert "final_norm.weight" not in model.state_dict()


def test_kept_tokens_have_all_levels():
    everything = torch.arange(18).expand(2, -1)
    assert torch.allclose(encoder().visible(clip(), everything), encoder().latents(clip()).flatten(1, 2), atol=1e-5)


def test_each_level_of_the_target_is_normalised_by_itself():
    model, target = encoder(), EMA()
    target.bind(model)
    h = target(model, clip(), None).unflatten(-1, (3, DIM))
    assert torch.allclose(h, layer_norm(model.latents(clip()).unflatten(-1, (3, DIM))), atol=1e-5)
    assert torch.allclose(h.mean(-1), torch.zeros(()), atol=1e-5)


def test_images_have_an_embedding_of_their_own():
    model, picture = encoder(), clip(1)
    assert model(picture).shape == (2, 1, 9, DIM)
    tokens = model.embed(model.standardise(picture))
    patch = model.standardise(picture)[:, 0, :, 8:16, 16:24]
    weight = model.image_patch_embed.weight[:, :, 0]
    expected = torch.einsum("bchw,dchw->bd", patch, weight) + model.image_patch_embed.bias + model.image_embedding[0]
    assert torch.allclose(tokens[:, 5], expected, atol=1e-5)
    video = model.embed(model.standardise(clip()))
    plain = encoder(images=False)
    plain.patch_embed.load_state_dict(model.patch_embed.state_dict())
    assert torch.allclose(video, plain.embed(plain.standardise(clip())) + model.video_embedding, atol=1e-5)
    with pytest.raises(InputError, match="multiple of 2"):
        plain(picture)


def test_fresh_modality_embeddings_are_next_to_nothing():
    fresh = VideoViT(24, 4, 2, 8, 480, 1, 2, images=True)
    assert 0.8e-6 < fresh.image_embedding.std() < 1.2e-6 and 0.8e-6 < fresh.video_embedding.std() < 1.2e-6


@pytest.mark.parametrize("frames", [1, 4])
def test_every_parameter_has_a_gradient_from_images_and_from_videos(frames):
    """As distributed training wants it; what the clip does not use has one of zero."""
    whole = MaskedJEPA(encoder().train(), predictor().train(), EMA())
    (made,) = whole(clip(frames), [mask(4, 3, count=9)])
    (made.p.square().sum() + made.context.square().sum()).backward()
    learning = [*whole.encoder.named_parameters(), *whole.predictor.named_parameters()]
    assert not [name for name, value in learning if value.grad is None]
    unused = "video_embedding" if frames == 1 else "image_embedding"
    for part in (whole.encoder, whole.predictor):
        for name in ("video_embedding", "image_embedding"):
            assert getattr(part, name).grad.any() == (name != unused)
    assert whole.encoder.patch_embed.weight.grad.any() == (frames > 1)
    assert whole.encoder.image_patch_embed.weight.grad.any() == (frames == 1)


@pytest.mark.parametrize("sides", [(7, 4), (24, 16), (1, 31)])
def test_interpolated_rows_and_columns_end_where_those_of_sixteen_do(sides):
    """Time is not scaled; the frequencies are those of the interleaved form."""
    head, each = 24, 8
    cos, sin = (table.view(3, *sides, head) for table in rotary_grid((3, *sides), head, "rotary_interpolated"))
    omega = torch.tensor([10000.0 ** (-i / 4) for i in range(4)]).repeat_interleave(2)
    sign = torch.tensor([-1.0, 1.0]).repeat(4)
    for axis, side in enumerate((3, *sides)):
        scale = 15 / (side - 1) if axis and side > 1 else 1.0
        for place in (0, side // 2, side - 1):
            line = [0, 0, 0]
            line[axis] = place
            part = slice(axis * each, (axis + 1) * each)
            angle = place * scale * omega
            assert torch.allclose(cos[(*line, part)], angle.cos(), atol=1e-5)
            assert torch.allclose(sin[(*line, part)], angle.sin() * sign, atol=1e-5)


def test_the_model_is_its_parts():
    whole, where = MaskedJEPA(encoder(), predictor(), EMA()).eval(), mask(6, 4, targets=2)
    (made,) = whole(clip(), [where])
    z = whole.encoder.visible(clip(), where.context)
    h = layer_norm(whole.target.teacher.latents(clip()).unflatten(-1, (3, DIM))).flatten(-2).flatten(1, 2)
    assert made.p.shape == made.h.shape == (2, 2, 4, 3 * DIM)
    assert made.context.shape == made.context_h.shape == (2, 2, 6, 3 * DIM)
    place = torch.cartesian_prod(*(torch.arange(side) for side in GRID)).float()
    for number, target in enumerate(where.target.unbind(1)):
        question = whole.predictor.mask_tokens[0].expand(*target.shape, -1)
        p, context = whole.predictor.forecast(z, where.context, question, target)
        assert torch.allclose(made.p[:, number], p, atol=1e-5)
        assert torch.allclose(made.context[:, number], context, atol=1e-5)
        assert torch.allclose(made.h[:, number], take(h, target), atol=1e-5)
        assert torch.allclose(made.context_h[:, number], take(h, where.context), atol=1e-5)
        for sample in range(2):
            apart = torch.cdist(place[where.context[sample]], place[target[sample]]).amin(1)
            assert torch.allclose(made.distance[sample, number], apart, atol=1e-5)


def test_levels_are_mixed_on_their_way_into_the_predictor():
    part = predictor()
    assert [tuple(value.shape) for value in part.embed.parameters()] == [(DIM, 3 * DIM), (DIM,), (16, DIM), (16,)]
    assert part.proj.weight.shape == part.proj_context.weight.shape == (3 * DIM, 16)


def test_a_wider_teacher_that_was_trained_before():
    teacher = VideoViT(24, 4, 2, 8, 40, 2, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    plain = {"levels": None, "images": False}
    whole = MaskedJEPA(encoder(**plain), predictor(levels=1, images=False, context=False, out=40), Teacher(teacher))
    (made,) = whole(clip(), [mask(6, 4)])
    assert made.p.shape == made.h.shape == (2, 1, 4, 40)
    h = layer_norm(teacher(clip())).flatten(1, 2)
    assert torch.allclose(made.h[:, 0], take(h, mask(6, 4).target[:, 0]), atol=1e-5)
    Regression("l1")(made).backward()
    whole.train()
    assert all(value.grad is None for value in teacher.parameters()) and not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert whole.reader is whole.encoder
    with pytest.raises(InputError, match="set its out=40"):
        MaskedJEPA(encoder(**plain), predictor(levels=1, images=False), Teacher(teacher))


@pytest.mark.parametrize("changes", [{"levels": 1}, {"images": False}])
def test_parts_that_do_not_fit_are_refused(changes):
    with pytest.raises(InputError, match="set the predictor's as the encoder's"):
        MaskedJEPA(encoder(), predictor(**changes), EMA())


def test_it_compiles_without_graph_breaks():
    whole, where = MaskedJEPA(encoder(), predictor(), EMA()).eval(), [mask(6, 4), mask(5, 7)]
    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)(clip(), where)
    for mine, theirs in zip(whole(clip(), where), compiled):
        for name in ("p", "h", "context", "distance"):
            assert torch.allclose(getattr(mine, name), getattr(theirs, name), atol=1e-5)


def test_a_teacher_reads_the_encoder_of_a_checkpoint(tmp_path):
    """The target's where it has one, else the context encoder; or a state dict. What does not fit is refused."""
    trained, other = VideoViT(24, 4, 2, 8, DIM, 1, 2), VideoViT(24, 4, 2, 8, DIM, 1, 2)

    def prefixed(prefix, model):
        return {prefix + name: value for name, value in model.state_dict().items()}

    files = {
        "both.ckpt": {"state_dict": prefixed("world.encoder.", other) | prefixed("world.target.teacher.", trained)},
        "one.ckpt": {"state_dict": prefixed("world.encoder.", trained)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    save_file(trained.state_dict(), tmp_path / "plain.safetensors")
    for name in (*files, "plain.safetensors"):
        teacher = Teacher(VideoViT(24, 4, 2, 8, DIM, 1, 2), str(tmp_path / name))
        assert torch.equal(teacher.latents(other, clip(), None), trained(clip())), name
    with pytest.raises(InputError, match="does not fit the teacher"):
        Teacher(VideoViT(24, 4, 2, 8, DIM, 2, 2), str(tmp_path / "one.ckpt"))
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "one.ckpt").read_bytes()[:100])
    for name in ("cut.ckpt", "none.ckpt"):
        with pytest.raises(InputError, match="give a checkpoint"):
            Teacher(VideoViT(24, 4, 2, 8, DIM, 1, 2), str(tmp_path / name))
