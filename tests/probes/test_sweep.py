from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from probes import heads as heads_module
from probes.attentive import AttentiveProbe
from probes.cache import Examples
from probes.heads import Heads, Setting, Standing, quiet
from probes.linear_sgd import LinearSGDProbe
from probes.policy import GoalCloning
from probes.training import _cuts, predict, sweep

SETTINGS = [Setting(3e-2, 0.8), Setting(1e-2, 0.0), Setting(1e-3, 0.1)]
TOTAL = 6  # steps
GRID = {"lr": [1e-3, 1e-2, 3e-2, 1e-1], "weight_decay": [0.01, 0.4]}


def made(classes: int = 0, count: int = 40, steps: int = 2, dtype: str = "float16", outputs: int = 2) -> Examples:
    """Examples of two windows of 3 tokens of width 8; targets that some token decides."""
    random = np.random.default_rng(0)
    z = (3 * random.standard_normal((count, steps * 3, 8)) + 1).astype(dtype)
    y = torch.from_numpy(z[:, 0, :outputs].astype(np.float32)) * 5 + 2
    y = (y[:, 0] > 7).long() + (y[:, 0] > 0).long() if classes else y
    names = tuple("ab"[:outputs])
    return Examples(z, np.arange(count)[:, None], steps, y, np.arange(count) // 2, names)


PROBES = {
    "attentive, regression": (AttentiveProbe(heads=2), 0),
    "attentive, classes": (AttentiveProbe(heads=4, classes=3), 3),
    "attentive, deep": (AttentiveProbe(depth=3, heads=2, classes=3), 3),
    "attentive, deep regression": (AttentiveProbe(depth=2, heads=2), 0),
    "linear, sgd": (LinearSGDProbe(classes=3), 3),
    "linear, adamw": (LinearSGDProbe("flat", optimizer="adamw"), 0),
    "policy": (GoalCloning(8), 0),
    "policy, modes": (GoalCloning(8, modes=3), 0),
}


@pytest.fixture(params=PROBES)
def built(request):
    """A built probe and its examples. Weights are large, so that each of them matters and gradients are clipped."""
    probe, classes = PROBES[request.param]
    examples, probe = made(classes), copy.deepcopy(probe)
    torch.manual_seed(0)
    probe.build(examples[:][0], examples.y)
    with torch.no_grad():
        for value in probe.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return probe, examples


def alone(probe, setting, examples, rows):
    """A head that is trained by itself, by torch; its losses and the norms of its gradients."""
    probe = copy.deepcopy(probe)
    options = {"lr": setting.lr, "weight_decay": setting.weight_decay}
    if probe.optimizer == "sgd":
        optimizer = torch.optim.SGD(probe.parameters(), momentum=0.9, **options)
    else:
        optimizer = torch.optim.AdamW(probe.parameters(), **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / TOTAL)))
    norms, losses = [], []
    for chosen in rows:
        z, y = examples[chosen.numpy()]
        loss = probe.loss(probe(z), y)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(probe.parameters(), 1.0))
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return probe, torch.stack(losses), torch.stack(norms)


def drawn(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(count, generator=generator)[:15] for _ in range(TOTAL)]


def rate(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / TOTAL))


def trained(heads, examples, rows):
    with quiet():
        return torch.stack([heads.step(examples, chosen, rate(number)) for number, chosen in enumerate(rows)])


@pytest.mark.parametrize("work", [heads_module.WORK, 2**14, 1], ids=["at once", "in pieces", "one by one"])
def test_heads_train_as_if_alone(built, work, monkeypatch):
    """Forward, backward, clipping, optimiser and schedule, against torch's own, head by head."""
    monkeypatch.setattr(heads_module, "WORK", work)
    probe, examples = built
    rows = drawn(len(examples))
    heads = Heads(probe, SETTINGS, "cpu")
    losses = trained(heads, examples, rows)
    for number, setting in enumerate(SETTINGS):
        theirs, wanted, norms = alone(probe, setting, examples, rows)
        assert norms.max() > 1, "nothing was clipped"
        torch.testing.assert_close(losses[:, number], wanted, atol=1e-5, rtol=1e-4)
        mine = heads.head(number)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        z = examples[:][0]
        torch.testing.assert_close(mine(z), theirs(z), atol=1e-4, rtol=1e-4)
    moved = [(heads.head(0).state_dict()[name] - value).abs().max() for name, value in probe.named_parameters()]
    assert min(moved) > 1e-3, "a parameter did not learn"


def test_gradients_are_those_of_each_head_alone(built):
    probe, examples = built
    heads = Heads(probe, SETTINGS, "cpu")
    with torch.no_grad():
        for value in heads.weights.values():  # other weights in every head
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)))
    z, y = examples[:]
    with quiet():
        losses = heads.backward(z, y, 1.0)
    for number in range(len(heads)):
        head = heads.head(number)
        loss = head.loss(head(z), y)
        loss.backward()
        torch.testing.assert_close(losses[number], loss.detach(), atol=1e-5, rtol=1e-5)
        for name, value in head.named_parameters():
            scale = value.grad.abs().max().clamp(min=1)
            torch.testing.assert_close(heads.gradients[name][number] / scale, value.grad / scale, atol=1e-5, rtol=0)


def test_what_is_predicted_together_is_what_each_predicts(built):
    probe, examples = built
    heads, z = Heads(probe, SETTINGS), examples.stored(slice(None))[0]
    assert z.dtype == torch.float16
    with quiet(), torch.no_grad():
        together = probe.together(heads.weights, z)
    assert together.shape[0] == len(SETTINGS)
    for number in range(len(SETTINGS)):
        torch.testing.assert_close(together[number], heads.head(number)(z.float()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_diverged_head_changes_nothing_in_the_others(built, value):
    probe, examples = built
    rows = drawn(len(examples))
    healthy, sick = Heads(probe, SETTINGS[1:]), Heads(probe, SETTINGS)
    for weights in sick.weights.values():
        weights[0] = value
    losses = trained(sick, examples, rows)
    torch.testing.assert_close(losses[:, 1:], trained(healthy, examples, rows), atol=1e-6, rtol=1e-5)
    for number in (0, 1):
        mine, theirs = sick.head(number + 1).state_dict(), healthy.head(number).state_dict()
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    held = sick.evaluate(examples).losses
    assert held[1:].isfinite().all() and (value == 1e30 or not held[0].isfinite())


def test_heads_that_go_on_do_not_notice_that_others_went(built):
    probe, examples = built
    rows = drawn(len(examples))
    whole, fewer = Heads(probe, SETTINGS), Heads(probe, SETTINGS)
    for number, chosen in enumerate(rows):
        with quiet():
            whole.step(examples, chosen, rate(number))
            fewer.step(examples, chosen, rate(number))
        if number == 2:
            fewer.keep([0, 2])
    assert fewer.settings == [SETTINGS[0], SETTINGS[2]]
    for mine, theirs in ((0, 0), (1, 2)):
        kept = fewer.head(mine).state_dict()
        torch.testing.assert_close(kept, whole.head(theirs).state_dict(), atol=1e-5, rtol=1e-4)


def test_all_heads_begin_alike(built):
    heads = Heads(built[0], SETTINGS)
    for value in heads.weights.values():
        assert torch.equal(value, value[:1].expand_as(value))


def test_the_evaluation_is_the_mean_loss(built, monkeypatch):
    probe, examples = built
    with quiet():
        whole = Heads(probe, SETTINGS[:2]).evaluate(examples).losses
        monkeypatch.setattr(heads_module, "WORK", 2**12)
        pieces = Heads(probe, SETTINGS[:2]).evaluate(examples).losses
    expected = probe.loss(probe(examples[:][0]), examples.y).detach()
    torch.testing.assert_close(whole, expected.expand(2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)


def test_dropout_and_frozen_parameters():
    """A probe may hold what is not trained, and noise: every head draws its own, and none when it is evaluated."""
    examples, probe = made(), GoalCloning(8)
    probe.build(*examples[:])
    probe.head = torch.nn.Sequential(probe.head, torch.nn.Dropout(0.5))
    frozen = next(iter(probe.head.parameters()))
    frozen.requires_grad_(False)
    heads = Heads(probe, SETTINGS)
    losses = heads.step(examples, torch.arange(40), 1.0)
    assert len(losses.unique()) == len(SETTINGS)
    heads = Heads(probe, SETTINGS)
    assert len(heads.evaluate(examples).losses.unique()) == 1
    assert torch.equal(next(iter(heads.head(0).head.parameters())), frozen)


def test_twenty_of_them_become_few():
    assert _cuts(20, 20, 3) == {7: 7, 13: 3}
    assert _cuts(20, 20, 2) == {4: 10, 8: 5, 12: 3, 16: 2}
    assert _cuts(20, 20, None) == _cuts(1, 20, 2) == _cuts(2, 20, 2) == _cuts(20, 1, 3) == {}
    assert _cuts(4, 2, 2) == {1: 2} and _cuts(64, 3, 2) == {1: 16, 2: 2}


@pytest.mark.parametrize("classes", [0, 3])
def test_halving_keeps_the_best_and_their_training(classes):
    def swept(halving):
        torch.manual_seed(0)
        probe = AttentiveProbe(heads=2, classes=classes)
        return sweep(probe, made(classes), 6, 16, **GRID, seed=0, halving=halving)

    whole, halved = swept(None), swept(2)
    assert len(whole.heads) == len(whole.settings) == 8 and whole.chosen["dropped"] == []
    assert len(halved.heads) == len(halved.settings) == 2 and halved.chosen["heads"] == 8
    dropped = halved.chosen["dropped"]
    assert [one["epoch"] for one in dropped] == [2] * 4 + [4] * 2 and all(one["held_out_loss"] > 0 for one in dropped)
    known = {(one["lr"], one["weight_decay"]): number for number, one in enumerate(whole.settings)}
    for head, setting in zip(halved.heads, halved.settings):
        same = known[setting["lr"], setting["weight_decay"]]
        assert setting["held_out_loss"] == pytest.approx(whole.settings[same]["held_out_loss"], rel=1e-3)
        torch.testing.assert_close(head.state_dict(), whole.heads[same].state_dict(), atol=1e-4, rtol=1e-3)
    grid = {(one["lr"], one["weight_decay"]) for one in (*halved.settings, *dropped)}
    assert grid == known.keys()


def test_the_head_of_the_lowest_held_out_loss_is_chosen():
    torch.manual_seed(0)
    found = sweep(LinearSGDProbe("flat"), made(), 60, 8, [1e-9, 1e-2, 1e-4], [0.0], seed=0)
    losses = [one["held_out_loss"] for one in found.settings]
    assert found.chosen == {**found.settings[1], "heads": 3, "dropped": []} and losses[1] == min(losses)
    assert found.probe is found.heads[1] and not found.probe.training
    guess, y = predict(found.probe, made())
    assert (guess - y).square().mean() < 0.05 * y.var()


def test_a_certain_head_with_few_mistakes_goes_before_a_timid_one_with_many():
    nan = float("nan")
    standing = Standing(torch.tensor([1.2, 4.0, nan, 3.0]), torch.tensor([0.6, 0.2, 0.1, 0.2]))
    assert standing.ranked() == [3, 1, 0, 2]  # of equal shares the lower loss; NaN last, whatever it answers
    assert standing.told(1) == {"held_out_loss": 4.0, "held_out_accuracy": pytest.approx(0.8)}
    assert standing.told(2)["held_out_loss"] is None
    values = Standing(torch.tensor([1.2, 0.4, nan]), None)
    assert values.ranked() == [1, 0, 2] and values.told(0) == {"held_out_loss": pytest.approx(1.2)}


def test_wrong_answers_are_counted_over_all_pieces(monkeypatch):
    examples, probe = made(3), AttentiveProbe(heads=2, classes=3)
    torch.manual_seed(0)
    probe.build(*examples[:])
    monkeypatch.setattr(heads_module, "WORK", 2**12)
    with quiet():
        found = Heads(probe, SETTINGS[:2]).evaluate(examples).wrong
    expected = (probe(examples[:][0]).argmax(1) != examples.y).float().mean()
    assert 0 < expected < 1
    torch.testing.assert_close(found, expected.expand(2))


def test_classes_are_learned_by_sgd():
    found = sweep(LinearSGDProbe("flat", classes=3), made(3), 40, 8, [0.3, 0.03], [0.0, 0.01], seed=0)
    guess, y = predict(found.probe, made(3))
    assert (guess.argmax(1) == y).float().mean() > 0.9


def test_a_sweep_is_the_same_again():
    def swept():
        torch.manual_seed(3)
        return sweep(AttentiveProbe(depth=2, heads=2), made(), 2, 16, [1e-3], [0.01], seed=5)

    first, second = swept(), swept()
    assert first.chosen == second.chosen
    torch.testing.assert_close(first.probe.state_dict(), second.probe.state_dict(), rtol=0, atol=0)


def test_heads_that_all_diverge_are_told():
    with pytest.raises(InputError, match="lower lr"):
        sweep(LinearSGDProbe("flat"), made(), 30, 4, [1e30], [0.0], seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": []}, {"lr": [0.0]}, {"lr": [float("nan")]}, {"weight_decay": [-1.0]}, {"epochs": 0}, {"halving": 1},
     {"accelerator": "tpu"}, {"batch": 0}],
    ids=str,
)  # fmt: skip
def test_bad_input_is_told_in_a_line(wrong):
    given = {"epochs": 1, "batch": 8, "lr": [1e-3], "weight_decay": [0.0], "seed": 0, **wrong}
    with pytest.raises(InputError) as told:
        sweep(LinearSGDProbe(), made(), **given)
    assert "\n" not in str(told.value)


def test_nan_features_are_told():
    examples = made()
    examples.features[3, 2, 1] = np.nan
    with pytest.raises(InputError, match="NaN or infinity near row"):
        sweep(AttentiveProbe(heads=2), examples, 1, 8, [1e-3], [0.0], seed=0)
