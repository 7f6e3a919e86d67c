"""One linear layer on every token: found exactly where the labels are linear, scored as the formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jepa.errors import InputError
from probes import segmentation
from probes.dense import DenseProbe
from probes.score import Answers

N, T, TOKENS, D = 60, 2, 3, 5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features():
    return random(N, T, TOKENS, D) * torch.tensor([1.0, 3, 0.1, 10, 2]) + 4


def labels(classes: int) -> torch.Tensor:
    """Linear in the features: values, or the largest of linear scores."""
    scores = (features() - 4) @ random(D, max(classes, 1), seed=1) + random(max(classes, 1), seed=2)
    return (scores.argmax(-1).to(torch.uint8) if classes else scores.squeeze(-1)).flatten(1)


def fitted(z, y, size=7, **options):
    probe = DenseProbe(**options)
    probe.build(z[:1], y)
    probe.fit_batches([(z[i : i + size], y[i : i + size]) for i in range(0, len(z), size)])
    return probe


def test_linear_values_are_recovered_exactly():
    z, y = features(), labels(0)
    probe = fitted(z, y, ridge=1e-10)
    assert torch.allclose(probe(z), y, atol=1e-3)
    whole = DenseProbe(ridge=1e-10)
    whole.build(z, y)
    whole.fit(z, y)
    assert torch.allclose(whole(z), probe(z), atol=1e-4)  # however it is cut into batches


def test_linear_classes_are_recovered():
    z, y = features(), labels(3)
    probe = fitted(z, y, classes=3, ridge=1e-6)
    answer = probe.answer(probe(z))
    assert answer.dtype == torch.uint8 and (answer == y).float().mean() > 0.99
    told = probe.scored([Answers(answer, y, np.arange(N), probe.typical(y), ("map",))]).numbers
    assert told["metric"] == "mean_iou" and told["mean_iou"] > 0.97 and set(told["classes"]) == {"0", "1", "2"}
    common = np.bincount(y.flatten().numpy()).max() / y.numel()
    assert told["token_accuracy_of_most_common"] == pytest.approx(common) and common < told["token_accuracy"]


@pytest.mark.parametrize("classes", [0, 3])
def test_what_has_no_label_teaches_nothing_and_is_not_scored(classes):
    """Other features under tokens to be ignored change neither the fit nor the scores."""
    z, y = features(), labels(classes)
    hidden = random(*y.shape, seed=5) > 0.5
    hidden[7:14] = True  # a whole batch
    y = torch.where(hidden, segmentation.IGNORE if classes else torch.nan, y).to(y.dtype)
    other = torch.where(hidden.unflatten(1, (T, TOKENS))[..., None], 100 * random(*z.shape, seed=9), z)
    mine, theirs = (fitted(each, y, classes=classes) for each in (z, other))
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values()))
    answers = [mine.answer(mine(each)).detach() for each in (z, other)]
    assert not torch.equal(*answers)
    scores = [mine.scored([Answers(each, y, np.arange(N), mine.typical(y), ("map",))]).numbers for each in answers]
    assert scores[0] == scores[1]
    losses = [mine.loss(mine(each), y) for each in (z, other)]
    assert torch.allclose(*losses)


def test_the_loss_is_the_mean_over_what_has_a_label():
    z, y = features(), labels(3)
    y[0, :4] = segmentation.IGNORE
    probe = fitted(z, y, classes=3)
    scores, known = probe(z), y != segmentation.IGNORE
    assert torch.allclose(probe.loss(scores, y), F.cross_entropy(scores[known], y[known].long()))
    assert probe.loss(scores[:1, :4], y[:1, :4]) == 0


def test_iou_is_the_formula():
    truth = torch.tensor([[0, 0, 1, 1, 255], [2, 2, 2, 0, 255]], dtype=torch.uint8)
    said = torch.tensor([[0, 1, 1, 1, 0], [2, 0, 2, 0, 4]], dtype=torch.uint8)
    answers = Answers(said, truth, np.array([3, 8]), torch.tensor(0), ("map",))
    told = segmentation.segmentation([answers], 5).numbers
    each = {"0": 2 / 4, "1": 2 / 3, "2": 2 / 3}
    assert {name: part["iou"] for name, part in told["classes"].items()} == pytest.approx(each)
    assert told["mean_iou"] == pytest.approx(np.mean(list(each.values())))
    assert told["token_accuracy"] == pytest.approx(6 / 8)
    assert told["token_accuracy_of_most_common"] == pytest.approx(3 / 8)
    assert [part["tokens"] for part in told["classes"].values()] == [3, 2, 3]
    first = segmentation.segmentation([Answers(said[:1], truth[:1], np.array([3]), torch.tensor(0), ("map",))], 5)
    assert first.numbers["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2) and len(first.draws) == 1


def test_values_are_scored_by_r2():
    y, said = random(9, 4).double(), random(9, 4, seed=1).double()
    y[2, 1] = torch.nan
    known = y.isfinite()
    answers = Answers(said, y, np.arange(9), torch.tensor(0.5).double(), ("map",))
    told = segmentation.values([answers]).numbers
    truth, guess = y[known], said[known]
    residual = (truth - guess).square()
    assert told["r2"] == pytest.approx(float(1 - residual.sum() / (truth - truth.mean()).square().sum()))
    assert told["rmse"] == pytest.approx(float(residual.mean().sqrt()))
    assert told["rmse_of_mean"] == pytest.approx(float((truth - 0.5).square().mean().sqrt()))


@pytest.mark.parametrize("classes", [0, 3])
def test_the_headline_alone_needs_no_bootstrap(classes, monkeypatch):
    y, said = labels(classes), labels(classes).flip(0)
    y[3, :2] = segmentation.IGNORE if classes else torch.nan
    answers, probe = Answers(said, y, np.arange(N) // 2, torch.tensor(0), ("map",)), DenseProbe(classes)
    expected = probe.scored([answers]).draws[0]
    monkeypatch.delattr(segmentation, "resampled")
    assert probe.point(answers) == pytest.approx(expected, rel=1e-9) and 0 != expected < 1


@pytest.mark.parametrize("classes", [0, 3])
def test_it_can_be_a_head_of_a_sweep(classes):
    z, y = features(), labels(classes)
    probe = DenseProbe(classes, by="gradient")
    torch.manual_seed(0)
    probe.build(z[:20], y)
    assert not probe.closed_form
    before, optimiser = float(probe.loss(probe(z), y).detach()), torch.optim.Adam(probe.parameters(), 0.05)
    for _ in range(100):
        optimiser.zero_grad()
        loss = probe.loss(probe(z), y)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2 * before


def test_maps_of_another_kind_are_refused():
    z = features()
    for options, y, message in (
        ({"classes": 2}, labels(3), "hold class 2, expected 0 to 1, or 255: raise classes"),
        ({"classes": 0}, labels(3), "classes=0 for targets that are classes.*set classes to their number"),
        ({"classes": 3}, labels(0), "classes=3 for targets that are values.*set classes to 0"),
        ({"classes": 3}, labels(3)[:, 0].long(), "expected maps as target"),
        ({"classes": 3}, labels(3)[:, :3], "latents of 6 tokens for maps of 3"),
        ({"classes": 3}, torch.full_like(labels(3), 255), "no token of the training maps has a label"),
    ):
        with pytest.raises(InputError, match=message):
            DenseProbe(**options).build(z, y)
    with pytest.raises(InputError, match="at most 255"):
        DenseProbe(classes=256)
    with pytest.raises(InputError, match="by was given 'sgd'"):
        DenseProbe(by="sgd")
    with pytest.raises(InputError, match="constant"):
        segmentation.values([Answers(torch.ones(2, 2), torch.ones(2, 2), np.arange(2), torch.tensor(1.0))])
    none = torch.full((2, 2), 255, dtype=torch.uint8)
    with pytest.raises(InputError, match="no token of the test maps"):
        segmentation.segmentation([Answers(none, none, np.arange(2), torch.tensor(0))], 2)
    with pytest.raises(InputError, match="no token of the test maps"):
        DenseProbe(2).point(Answers(none, none, np.arange(2), torch.tensor(0)))
