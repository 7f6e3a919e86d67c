"""Masked models: what the predictor depends on, and where gradients go."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.layers import layer_norm, take
from jepa.models.masked import MaskedJEPA, MaskPredictor
from jepa.models.positions import Form
from jepa.models.targets import EMA, Online
from jepa.models.video import VideoViT
from jepa.objectives.prediction import Regression
from jepa.objectives.sigreg import SIGReg
from jepa.schema import Mask

FORMS = [form for form in Form.__args__ if form != "sincos_2d"]
GRID, TOKENS, DIM = (2, 3, 3), 18, 24


def predictor(form="rotary_interleaved", masks=2):
    torch.manual_seed(0)
    model = MaskPredictor(DIM, GRID, masks, width=48, depth=2, heads=4, positions=form).eval()
    for value in model.parameters():  # large enough for attention to look at something
        torch.nn.init.normal_(value, std=0.5)
    return model


def model(target=None, masks=2):
    torch.manual_seed(0)
    return MaskedJEPA(VideoViT(24, 4, 2, 8, DIM, 1, 2), predictor(masks=masks), target or EMA())


def clip():
    return torch.randint(0, 256, (2, 4, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def mask(context, targets, length, seed=2):
    """Random disjoint tokens: context [2,K], targets [2,M,L]."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(TOKENS, generator=draw) for _ in range(2)])
    return Mask(order[:, :context], order[:, context : context + targets * length].view(2, targets, length))


@pytest.mark.parametrize("form", FORMS)
def test_forecasts_do_not_depend_on_the_order_of_the_context(form):
    part, where = predictor(form), mask(8, 1, 5)
    z, target, order = torch.randn(2, 8, DIM), where.target[:, 0], torch.randperm(8)
    p = part(z, where.context, target)
    assert p.shape == (2, 5, DIM)
    assert torch.allclose(part(z[:, order], where.context[:, order], target), p, atol=1e-5)
    # but on which latent is where, and the questions may come in any order
    assert not torch.allclose(part(z[:, order], where.context, target), p, atol=1e-4)
    assert torch.allclose(part(z, where.context, target.flip(1)), p.flip(1), atol=1e-5)


def test_every_row_may_ask_with_its_own_token():
    part, where = predictor(), mask(8, 1, 5)
    z, target = torch.randn(2, 8, DIM), where.target[:, 0]
    both = part(z, where.context, target, torch.tensor([1, 0]))
    assert torch.allclose(both[0], part(z, where.context, target, 1)[0], atol=1e-5)
    assert torch.allclose(both[1], part(z, where.context, target, 0)[1], atol=1e-5)
    assert not torch.allclose(both[0], part(z, where.context, target, 0)[0], atol=1e-4)


@pytest.mark.parametrize(
    "masks",
    [
        (mask(8, 1, 5), mask(8, 1, 5, seed=3)),
        (mask(8, 1, 5), mask(8, 1, 4, seed=3)),
        (mask(8, 1, 5), mask(4, 1, 9, seed=3)),
        (mask(6, 3, 4), mask(6, 3, 4, seed=3)),
        (mask(6, 3, 4),),
    ],
)
def test_the_model_is_its_parts_one_mask_at_a_time(masks):
    """Whatever goes through in one pass."""
    whole, video = model().eval(), clip()
    made = whole(video, masks)
    assert len(made) == len(masks)
    h = layer_norm(whole.target.teacher(video)).flatten(1, 2)
    for token, (where, prediction) in enumerate(zip(masks, made)):
        z = whole.encoder.visible(video, where.context)
        assert torch.allclose(prediction.z, z[:, None], atol=1e-5)
        for number, target in enumerate(where.target.unbind(1)):
            p = whole.predictor(z, where.context, target, token)
            assert torch.allclose(prediction.p[:, number], p, atol=1e-5)
            assert torch.allclose(prediction.h[:, number], take(h, target), atol=1e-5)


def test_the_l1_objective_averages_over_everything():
    (made,) = model()(clip(), [mask(6, 3, 4)])
    assert torch.allclose(Regression("l1")(made), (made.p - made.h).abs().mean())


def loss_of(whole, masks):
    return sum(Regression("l1")(made) for made in whole(clip(), masks)) / len(masks)


def test_gradients_reach_the_context_encoder_and_not_the_target():
    whole = model()
    loss_of(whole, (mask(8, 1, 5), mask(4, 1, 9))).backward()
    learning = [*whole.encoder.named_parameters(), *whole.predictor.named_parameters()]
    assert not [name for name, value in learning if value.grad is None]
    assert whole.predictor.mask_tokens.grad.abs().sum(1).min() > 0
    assert all(value.grad is None for value in whole.target.parameters())
    assert not any(value.requires_grad for value in whole.target.parameters())


def test_what_is_hidden_moves_the_target_and_not_the_forecast():
    whole, video, where = model().eval(), clip(), mask(8, 1, 10)
    other = video.clone()
    hidden = where.target[0, 0, 0].item()
    step, row, column = hidden // 9, hidden // 3 % 3, hidden % 3
    other[0, 2 * step : 2 * step + 2, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] ^= 255
    (before,), (after,) = whole(video, [where]), whole(other, [where])
    assert torch.equal(before.p, after.p)
    assert not torch.allclose(before.h[0], after.h[0], atol=1e-4)


def test_a_regularised_target_sees_latents_of_the_whole_video_with_gradient():
    whole = model(Online())
    (made,) = whole(clip(), [mask(8, 1, 5)])
    assert made.z.shape == (2, 2, 9, DIM)
    (Regression("l1")(made) + SIGReg(directions=8)(made)).backward()
    assert all(value.grad is not None for value in whole.encoder.parameters())


def test_it_learns():
    whole, masks = model(), (mask(8, 1, 5), mask(4, 1, 9))
    parameters = [*whole.encoder.parameters(), *whole.predictor.parameters()]
    optimiser = torch.optim.AdamW(parameters, 3e-3)
    first = loss_of(whole, masks).item()
    for _ in range(20):
        optimiser.zero_grad()
        loss_of(whole, masks).backward()
        optimiser.step()
    assert loss_of(whole, masks).item() < 0.8 * first


def test_images_are_videos_of_one_frame():
    parts = VideoViT(24, 1, 1, 8, DIM, 1, 2, positions="sincos_2d"), MaskPredictor(DIM, (1, 3, 3), 1, 16, 1, 2)
    where = Mask(torch.tensor([[0, 5]] * 2), torch.tensor([[[1], [8]]] * 2))
    (made,) = MaskedJEPA(*parts, EMA())(clip()[:, :1], [where])
    assert made.p.shape == made.h.shape == (2, 2, 1, DIM)


def test_it_compiles_without_graph_breaks():
    whole, masks = model(), [mask(8, 1, 5), mask(4, 2, 4)]
    compiled = torch.compile(whole, backend="eager", fullgraph=True)(clip(), masks)
    for mine, theirs in zip(whole(clip(), masks), compiled):
        assert torch.allclose(mine.p, theirs.p, atol=1e-5) and torch.allclose(mine.h, theirs.h, atol=1e-5)


def test_rows_of_other_lengths_in_every_batch_need_few_graphs():
    """As the legacy collation cuts them: after a handful of batches no length compiles the model anew."""
    torch._dynamo.reset()
    whole, graphs = model(), []
    compiled = torch.compile(whole, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)
    with torch.no_grad():
        for step in range(12):
            masks = [mask(4 + step % 5, 1, 9 - step % 4), mask(5 + step % 3, 1, 3 + step % 5)]
            for mine, theirs in zip(whole(clip(), masks), compiled(clip(), masks)):
                assert torch.allclose(mine.p, theirs.p, atol=1e-5)
    assert len(graphs) <= 4


def test_mask_tokens_begin_as_zeros_or_truncated_normal():
    """Whatever they begin as, all else is drawn the same."""
    states = []
    for std in (0.0, 0.02):
        torch.manual_seed(0)
        states.append(MaskPredictor(DIM, GRID, 4, 400, 1, 4, images=True, token_std=std).state_dict())
    zeros, normal = (state.pop("mask_tokens") for state in states)
    assert not zeros.any() and normal.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    with pytest.raises(InputError, match="token_std=-1"):
        MaskPredictor(token_std=-1)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="set the predictor's as the encoder's"):
        MaskedJEPA(VideoViT(24, 8, 2, 8, DIM, 1, 2), predictor(), EMA())
    with pytest.raises(InputError, match="multiple of heads"):
        MaskPredictor(width=10, heads=3)


@pytest.mark.parametrize("name", ["dim", "masks", "width", "depth", "heads", "mlp_ratio", "levels", "out"])
def test_a_predictor_of_no_size_is_refused(name):
    with pytest.raises(InputError, match=f"{name}.*0.*expected") as error:
        MaskPredictor(**{"grid": GRID, "width": 48, "depth": 1, "heads": 2, name: 0})
    assert "\n" not in str(error.value)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="given 2 masks, but has 1 mask tokens"):
        model(masks=1)(clip(), [mask(8, 1, 5)] * 2)
    packed = Mask(torch.arange(4), torch.arange(4), torch.tensor([0, 2, 4]), torch.tensor([0, 2, 4]))
    with pytest.raises(InputError, match="collate all"):
        model()(clip(), [mask(8, 1, 5), packed])
