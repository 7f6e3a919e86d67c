"""Recall, focal loss and the anticipation probe beside the formulas, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jepa.checkpoints.attentive import probe_from_published, probe_to_published
from jepa.errors import InputError
from jepa.models.attentive import ActionAnticipator
from probes import recall
from probes.anticipation import AnticipationProbe, focal
from probes.score import Answers

NAMES = ("verb", "noun", "action")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(count, n, seed=0):
    return torch.randint(count, (n,), generator=torch.Generator().manual_seed(seed))


def looped(scores, y, k, valid=None):
    """Class-mean recall, sample by sample."""
    found, missed = {}, {}
    for row, true in zip(scores.tolist(), y.tolist()):
        allowed = range(len(row)) if valid is None else valid
        best = sorted(allowed, key=lambda number: -row[number])[:k]
        table = found if true in best else missed
        table[true] = table.get(true, 0) + 1
    return np.mean([found.get(c, 0) / (found.get(c, 0) + missed.get(c, 0)) for c in {*found, *missed}])


@pytest.mark.parametrize("k", [1, 5])
def test_recall_equals_a_plain_loop(k):
    scores, y = random(200, 12), classes(9, 200)  # three classes never occur
    assert recall.class_mean(recall.hits(scores, y, k), y) == pytest.approx(looped(scores, y, k))
    only = recall.restricted(scores, y)
    assert recall.class_mean(recall.hits(only, y, k), y) == pytest.approx(looped(scores, y, k, range(9)))


def test_every_class_weighs_alike():
    y = torch.tensor([0] * 9 + [1])
    right = torch.tensor([True] * 9 + [False])
    assert recall.class_mean(right, y) == 0.5


def test_a_class_that_has_no_score_is_missed_and_counts():
    scores, y = random(6, 6), torch.tensor([0, 1, 2, 3, 7, 9])
    assert recall.hits(scores, y).tolist()[4:] == [False, False]
    assert recall.class_mean(torch.tensor([True] * 4 + [False] * 2), y) == pytest.approx(4 / 6)


def test_bootstrap_draws_are_the_recall_of_what_was_drawn():
    y, episode, right = classes(300, 900), np.arange(900) // 30, random(900) > 0
    draws = recall.draws(right, y, episode, seed=3)[:, 0]
    assert draws[0] == pytest.approx(recall.class_mean(right, y))
    generator = np.random.default_rng(3)
    times = generator.multinomial(30, np.full(30, 1 / 30), size=2000)[7]
    rows = np.concatenate([np.repeat(np.flatnonzero(episode == e), t) for e, t in enumerate(times)])
    assert draws[8] == pytest.approx(recall.class_mean(right[rows], y[rows]))


def test_focal_loss_is_the_formula_summed_over_classes():
    scores, y, alpha, gamma = random(4, 3).double(), torch.tensor([2, 0, 1, 1]), 0.25, 2.0
    total = 0.0
    for row, true in zip(scores.tolist(), y.tolist()):
        for number, score in enumerate(row):
            p = 1 / (1 + math.exp(-score))
            p, weight = (p, alpha) if number == true else (1 - p, 1 - alpha)
            total += -weight * (1 - p) ** gamma * math.log(p)
    assert float(focal(scores, y, alpha, gamma)) == pytest.approx(total / 4)
    # without focus and with even weights: half the binary cross entropy
    plain = F.binary_cross_entropy_with_logits(scores, F.one_hot(y, 3).double(), reduction="sum") / 8
    assert float(focal(scores, y, 0.5, 0.0)) == pytest.approx(float(plain))
    assert focal(torch.tensor([[200.0, -200.0]]), torch.tensor([0])) == 0 and focal(
        torch.tensor([[-200.0, 200.0]]), torch.tensor([0])
    ).isfinite()
    unknown = focal(scores, torch.tensor([3, 3, 3, 3]))  # no positive: the loss of all negatives
    assert float(unknown) == pytest.approx(float((0.75 * scores.sigmoid() ** 2 * F.softplus(scores)).sum() / 4))


def targets(n=40, seed=0):
    verb, noun = classes(3, n, seed), classes(4, n, seed + 1)
    return torch.stack([verb, noun, 4 * verb + noun], 1).float()


def built(**options):
    torch.manual_seed(0)
    probe, y = AnticipationProbe(heads=2, **options), targets()
    probe.build(random(5, 3, 2, 8), y)
    return probe, y


@pytest.mark.parametrize("loss", ["focal", "cross_entropy"])
def test_losses_are_summed_over_answers(loss):
    probe, y = built(criterion=loss)
    z = random(40, 3, 2, 8)
    scores = probe(z)
    assert scores.shape == (40, 3 + 4 + 12) and probe.sizes == [3, 4, 12]
    parts = zip(scores.split(probe.sizes, 1), y.long().unbind(1))
    apart = [focal(one, k) if loss == "focal" else F.cross_entropy(one, k) for one, k in parts]
    assert torch.allclose(probe.loss(scores, y), sum(apart))
    unseen = y.clone()
    unseen[:, 2] = 99
    assert probe.loss(scores, unseen).isfinite()


def test_each_answer_has_a_query_of_its_own():
    probe, _ = built()
    z = random(2, 3, 2, 8)
    before = probe(z).split(probe.sizes, 1)
    probe.head.pooler.query_tokens.data[:, 1] += 1
    after = probe(z).split(probe.sizes, 1)
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, False, True]


def test_published_weights_fit_and_answer_alike():
    probe, _ = built()
    torch.manual_seed(1)
    published = ActionAnticipator(8, 2, 4, {"verb": 3, "noun": 4, "action": 12})
    state = probe_to_published(published)
    probe.head.load_state_dict(probe_from_published(state, heads=2).state_dict())
    z = random(2, 3, 2, 8)
    assert torch.allclose(probe(z), torch.cat([*published(z.flatten(1, 2)).values()], 1), atol=1e-6)


@pytest.mark.parametrize("loss", ["focal", "cross_entropy"])
def test_heads_of_a_sweep_have_the_losses_of_single_probes(loss):
    probe, y = built(criterion=loss)
    z, weights = random(40, 3, 2, 8), dict(probe.named_parameters())
    several = {name: torch.stack([value.detach(), 1.1 * value.detach()]) for name, value in weights.items()}
    losses = probe.losses(probe.together(several, z), y)
    assert torch.allclose(losses[0], probe.loss(probe(z), y), atol=1e-5) and losses[0] != losses[1]


def test_a_class_that_never_occurs_is_not_among_the_most_common():
    y = torch.tensor([[2, 7], [2, 0], [9, 7]])
    assert recall.common(y, [10, 8]).tolist() == [[10, 2, 9, -1, -1, -1], [8, 7, 0, -1, -1, -1]]


def test_the_report_counts_unseen_classes_as_missed_and_names_the_published_rule():
    probe, y = built()
    test = y[:10].clone()
    test[0, 2], test[1, 2] = 12, 13  # two pairs that training lacked
    scores = torch.cat([10 * F.one_hot(column.clamp(max=part - 1), part).float() for column, part in zip(
        test.long().unbind(1), probe.sizes)], 1)  # fmt: skip
    answers = Answers(scores, test, np.arange(10), probe.typical(y), NAMES)
    told = probe.scored([answers]).numbers
    kinds = len(test[:, 2].unique())
    assert told["metric"] == "recall_at_5" and told["answers"]["verb"]["recall_at_5"] == 1
    assert told["recall_at_5"] == pytest.approx((kinds - 2) / kinds) == told["answers"]["action"]["recall_at_5"]
    assert told["answers"]["action"]["of_unseen_classes"] == 2 and told["as_published"]["left_out"] == 2
    assert told["as_published"]["recall_at_5"] == {name: 1.0 for name in NAMES}
    assert probe.point(answers) == told["recall_at_5"] == probe.scored([answers]).draws[0]
    low, high = told["recall_at_5_interval"]
    assert low <= told["recall_at_5"] <= high <= 1
    common = told["answers"]["action"]["recall_at_5_of_most_common"]
    best = targets()[:, 2].long().bincount().topk(5).indices
    assert common == pytest.approx(torch.isin(test[:, 2].unique().long(), best).double().mean().item())


def test_wrong_input():
    with pytest.raises(InputError, match="heads=3 on latents of width 8"):
        AnticipationProbe(heads=3).build(random(2, 1, 1, 8), targets())
    with pytest.raises(InputError, match="no class number"):
        AnticipationProbe(heads=2).build(random(2, 1, 1, 8), targets() + 0.5)
    with pytest.raises(InputError, match="sizes"):
        AnticipationProbe(heads=2, sizes=(2, 4, 12)).build(random(2, 1, 1, 8), targets())
    with pytest.raises(InputError, match="criterion"):
        AnticipationProbe(criterion="foca")
