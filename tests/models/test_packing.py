"""Packed masks: every row is computed as it would be alone, and counts as much as any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from jepa.masks import Blocks, Masks, MultiBlock
from jepa.models.distances import nearest
from jepa.models.masked import MaskedJEPA, MaskPredictor
from jepa.models.packing import Packing
from jepa.models.targets import EMA, Online
from jepa.models.video import VideoViT
from jepa.objectives.prediction import Regression
from jepa.schema import Mask

GRID, TOKENS, DIM, BATCH = (2, 4, 4), 32, 24, 3
GENERATORS = {
    "video": [MultiBlock(2, (0.3, 0.3)), MultiBlock(1, (0.2, 0.8), temporal=(0.5, 1.0))],
    "image": [Blocks(3, (0.1, 0.2), min_keep=2)],
}
KINDS = pytest.mark.parametrize("kind", GENERATORS)
FORMS = pytest.mark.parametrize("form", ["rotary_interleaved", "rotary_tiled", "sincos_uniform"])


def model(form="rotary_interleaved", masks=2, context=False, target=None):
    torch.manual_seed(0)
    encoder = VideoViT(32, 4, 2, 8, DIM, 2, 2, positions=form)
    predictor = MaskPredictor(DIM, GRID, masks, 24, 2, 2, positions=form, context=context)
    for value in (*encoder.parameters(), *predictor.parameters()):  # for attention to look at something
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.3)
    return MaskedJEPA(encoder, predictor, target or EMA())


def clip(batch=BATCH):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 4, 3, 32, 32), dtype=torch.uint8, generator=draw)


def masks(kind="video"):
    return Masks(GENERATORS[kind], "packed")(torch.arange(BATCH), GRID)


def alone(mask, sample):
    """The mask of one sample of a packed one, as rectangular masks, one per target."""
    bounds = mask.context_offsets.tolist()
    context = mask.context[bounds[sample] : bounds[sample + 1]][None]
    bounds = mask.target_offsets.tolist()
    count = (len(bounds) - 1) // BATCH
    rows = range(sample * count, (sample + 1) * count)
    return [Mask(context, mask.target[bounds[row] : bounds[row + 1]][None, None]) for row in rows]


def pieces(tensor, offsets):
    return tensor[0, 0].split(offsets.diff().tolist())


@pytest.mark.parametrize("lengths", [(3, 7, 1, 5), (4, 4, 4)])
def test_attention_within_rows(lengths):
    """Whatever the order in which the tokens lie."""
    total, order = sum(lengths), torch.randperm(sum(lengths))
    packing = Packing.of(torch.tensor(lengths), total, max(lengths))
    shuffled = Packing(packing.row[order], packing.slot[order], packing.lengths, max(lengths))
    q, k, v = torch.randn(3, 1, 2, total, 6)
    parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)))
    expected = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)
    assert torch.allclose(packing(q, k, v), expected, atol=1e-6)
    assert torch.allclose(shuffled(*(x[:, :, order] for x in (q, k, v))), expected[:, :, order], atol=1e-6)


@FORMS
@KINDS
def test_every_row_is_what_it_is_alone(form, kind):
    whole, video, drawn = model(form, context=True).eval(), clip(), masks(kind)
    assert len({len(part) for mask in drawn for part in mask.context.split(mask.context_offsets.diff().tolist())}) > 1
    made = whole(video, drawn)
    for number, (mask, prediction) in enumerate(zip(drawn, made)):
        targets = pieces(prediction.p, mask.target_offsets), pieces(prediction.h, mask.target_offsets)
        count = len(targets[0]) // BATCH
        asked = [length for length in mask.context_offsets.diff().tolist() for _ in range(count)]
        contexts = [getattr(prediction, name)[0, 0].split(asked) for name in ("context", "context_h", "distance")]
        for sample in range(BATCH):
            for row, one in enumerate(alone(mask, sample), start=sample * count):
                expected = whole(video[sample : sample + 1], [one] * (number + 1))[number]
                assert torch.allclose(targets[0][row], expected.p[0, 0], atol=2e-5)
                assert torch.allclose(targets[1][row], expected.h[0, 0], atol=1e-5)
                assert torch.allclose(contexts[0][row], expected.context[0, 0], atol=2e-5)
                assert torch.allclose(contexts[1][row], expected.context_h[0, 0], atol=1e-5)
                assert torch.equal(contexts[2][row], expected.distance[0, 0])
                assert torch.allclose(prediction.z[sample, 0, 0], expected.z.mean((0, 1, 2)), atol=1e-5)


@KINDS
def test_the_joint_loss_and_its_gradient_are_the_mean_of_the_parts(kind):
    whole, video, drawn = model(), clip(), masks(kind)
    loss = Regression("l1")

    def gradient(value):
        parameters = [*whole.encoder.parameters(), *whole.predictor.parameters()]
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        return torch.cat([part.flatten() for part in found if part is not None])

    joint = sum(loss(made) for made in whole(video, drawn)) / len(drawn)
    parts = []
    for number, mask in enumerate(drawn):
        for sample in range(BATCH):
            for one in alone(mask, sample):
                parts.append(loss(whole(video[sample : sample + 1], [one] * (number + 1))[number]))
    assert torch.allclose(joint, torch.stack(parts).mean(), atol=1e-6)
    assert torch.allclose(gradient(joint), gradient(torch.stack(parts).mean()), atol=1e-5)


def test_weights_have_mean_one_and_the_same_sum_in_every_row():
    made = model(context=True)(clip(), masks())
    for mask, prediction in zip(masks(), made):
        sums = [part.sum() for part in pieces(prediction.weight, mask.target_offsets)]
        assert torch.allclose(torch.stack(sums), torch.full((BATCH,), len(mask.target) / BATCH), rtol=1e-5)
        sums = [part.sum() for part in pieces(prediction.context_weight, mask.context_offsets)]
        assert torch.allclose(torch.stack(sums), torch.full((BATCH,), len(mask.context) / BATCH), rtol=1e-5)


def test_rows_of_one_length_packed_are_those_that_are_not():
    whole, video = model(context=True).eval(), clip()
    even = Masks(GENERATORS["video"])(torch.arange(BATCH), GRID)

    def pack(rows):
        rows = rows.flatten(0, -2)
        return rows.flatten(), torch.arange(len(rows) + 1, dtype=torch.int32) * rows.shape[1]

    packed = []
    for mask in even:
        (context, context_offsets), (target, target_offsets) = pack(mask.context), pack(mask.target)
        packed.append(Mask(context, target, context_offsets, target_offsets))
    for mine, theirs in zip(whole(video, packed), whole(video, even)):
        for name in ("p", "h", "context", "context_h", "distance"):
            one, other = getattr(mine, name)[0, 0], getattr(theirs, name).flatten(0, 2)
            assert torch.allclose(one, other, atol=2e-5), name
        assert torch.allclose(mine.weight, torch.ones(()), atol=1e-6)
        assert torch.allclose(Regression("l1")(mine), Regression("l1")(theirs), atol=1e-6)


def test_it_compiles_in_one_piece_and_seldom_anew():
    """The longest rows are known to the host; that of the masks of any batch is never bound to a graph."""
    torch._dynamo.reset()
    whole, graphs, drawn = model(context=True), [], Masks(GENERATORS["video"], "packed")
    compiled = torch.compile(whole, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)
    with torch.no_grad():
        for batch in torch.arange(8 * BATCH).split(BATCH):
            where = drawn(batch, GRID)
            for mine, theirs in zip(whole(clip(), where), compiled(clip(), where)):
                assert torch.allclose(mine.p, theirs.p, atol=1e-5)
                assert torch.allclose(mine.context, theirs.context, atol=1e-5)
                assert torch.allclose(mine.weight, theirs.weight)
    assert len(graphs) <= 5


def test_masks_that_do_not_say_their_longest_rows_are_measured():
    whole, drawn = model(context=True).eval(), masks()
    silent = [replace(mask, longest=None) for mask in drawn]
    for mine, theirs in zip(whole(clip(), drawn), whole(clip(), silent)):
        assert torch.equal(mine.p, theirs.p) and torch.equal(mine.context, theirs.context)


def test_a_regularised_target_has_latents_of_the_whole_video():
    made = model(target=Online())(clip(), masks())
    assert all(prediction.z.shape == (BATCH, 2, 16, DIM) for prediction in made)


@pytest.mark.parametrize("grid", [(1, 5, 4), (4, 3, 6), (2, 1, 1)])
def test_distances_are_those_of_a_search(grid):
    count = grid[0] * grid[1] * grid[2]
    marked = torch.rand(5, count) < torch.tensor([0.05, 0.3, 0.9, 1.0, 0.0])[:, None]
    marked[:2, 0] = True
    found = nearest(marked.flatten().nonzero()[:, 0], 5, grid)
    place = torch.cartesian_prod(*(torch.arange(side) for side in grid)).float()
    for row in range(4):
        expected = torch.cdist(place, place[marked[row]]).amin(1) if marked[row].any() else torch.inf
        assert torch.allclose(found[row], torch.as_tensor(expected).expand(count), atol=1e-5)
    assert found[4].isinf().all()
