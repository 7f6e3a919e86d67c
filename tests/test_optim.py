"""Schedules in closed form, parameter groups, and the optimiser over a whole training."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from jepa.errors import InputError
from jepa.models.targets import EMA
from jepa.optim import Cosine, Linear, Optimizer, Warmup, parameter_groups


def test_linear_and_cosine_reach_their_ends_and_stay():
    for schedule in (Linear(0.99, 0.999), Cosine(0.04, 0.4)):
        ends = schedule.start, schedule.end
        assert (schedule(0, 10), schedule(10, 10), schedule(12, 10)) == pytest.approx((*ends, ends[1]))
        assert schedule(5, 10) == pytest.approx(sum(ends) / 2)
    assert Cosine(1, 0)(1, 4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_warmup_rises_in_a_line_and_what_comes_after_falls():
    schedule = Warmup(0.1, Cosine(1.0, 0.01), 10)
    assert [schedule(step, 50) for step in (0, 5, 10, 30, 50)] == pytest.approx([0.1, 0.55, 1.0, 0.505, 0.01])
    assert [Warmup(0.1, Linear(1.0, 0.0), 10)(step, 50) for step in (5, 20, 50)] == pytest.approx([0.55, 0.75, 0.0])


def test_decay_spares_vectors_biases_and_frozen_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    net.register_parameter("token_bias", nn.Parameter(torch.zeros(2, 2)))
    net[3].requires_grad_(False)
    decay, spared = parameter_groups(net, 0.1)
    assert (decay["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in decay["params"]} == {id(net[0].weight), id(net[2].weight)}
    assert {id(p) for p in spared["params"]} == {id(p) for p in (net[0].bias, *net[1].parameters(), net.token_bias)}


def train(built: dict, steps: int) -> list[tuple[float, float, float]]:
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    used = []
    for _ in range(steps):
        decay, spared = optimizer.param_groups
        used.append((decay["lr"], decay["weight_decay"], spared["weight_decay"]))
        optimizer.step()
        scheduler.step()
    return used


def test_rate_and_weight_decay_of_every_step():
    recipe = Optimizer(lr=0.1, weight_decay=0.04, final_weight_decay=0.4, warmup=0.2, final=0.1)
    used = train(recipe.build(nn.Linear(3, 2), 20), 20)
    assert [rate for rate, _, _ in used[:4]] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert used[-1] == pytest.approx((0.01, 0.4, 0.0))
    assert used[9][1] == pytest.approx(0.22)


def published(recipe: Optimizer, total: int, steps: list[int]) -> list[tuple[float, float]]:
    """Learning rate and weight decay of some steps, counted from 1, without the training between."""
    scheduler = recipe.build(nn.Linear(3, 2), total)["lr_scheduler"]["scheduler"]
    return [(scheduler.rate(step, scheduler.total), scheduler.decay(step, scheduler.total)) for step in steps]


def test_v_jepa_stops_at_four_fifths_of_its_schedules():
    """90,000 steps of horizon 1.25: the rate stops at 7.5e-5, the weight decay at .366, the momentum at .9996."""
    peak = 6.25e-4
    recipe = Optimizer(
        lr=peak,
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup=40 / 300,
        start=2e-4 / peak,
        final=1e-6 / peak,
        horizon=1.25,
    )
    (first, _), (warm, _), (top, _), (last, decay) = published(recipe, 90000, [1, 6000, 12000, 90000])
    assert (first, warm, top) == pytest.approx((2e-4 + 4.25e-4 / 12000, 4.125e-4, peak))
    assert last == pytest.approx(1e-6 + (peak - 1e-6) / 2 * (1 + math.cos(math.pi * 78000 / 100500)))
    assert last == pytest.approx(7.5e-5, rel=0.01) and decay == pytest.approx(0.366, abs=5e-4)

    source, target = nn.Linear(1, 1, bias=False), EMA(0.998, 1.0, norm=False, horizon=1.25)
    target.bind(source)
    for progress, momentum in ((0.0, 0.998), (89999 / 90000, 0.9996)):
        nn.init.ones_(source.weight), nn.init.zeros_(target.teacher.weight)
        target.update(source, progress)
        assert 1 - target.teacher.weight.item() == pytest.approx(momentum, abs=1e-6)


def test_v_jepa_2_stays_at_its_peak_and_its_cooldown_falls_in_a_line():
    peak = 5.25e-4
    recipe = Optimizer(lr=peak, weight_decay=0.04, warmup_steps=12000, start=1e-4 / peak, shape="constant")
    rates = published(recipe, 240000, [1, 6000, 12000, 100000, 240000])
    assert [rate for rate, _ in rates] == pytest.approx([1e-4 + 4.25e-4 / 12000, 3.125e-4, peak, peak, peak])
    assert {decay for _, decay in rates} == {0.04}
    cooldown = Optimizer(lr=peak, warmup=0.0, shape="linear", final=1e-6 / peak, horizon=1.25)
    (first, _), (last, _) = published(cooldown, 12000, [1, 12000])
    assert first == pytest.approx(peak - (peak - 1e-6) / 15000) and last == pytest.approx(1.06e-4, rel=0.005)


def test_a_horizon_stretches_what_is_used():
    options = {"lr": 0.1, "weight_decay": 0.04, "final_weight_decay": 0.4, "final": 0.1}
    short = train(Optimizer(**options, warmup_steps=4, horizon=1.5).build(nn.Linear(3, 2), 20), 20)
    whole = train(Optimizer(**options, warmup_steps=4).build(nn.Linear(3, 2), 30), 30)
    assert short == whole[:20]


def test_a_fraction_of_the_warmup_is_not_lost_to_rounding():
    assert Optimizer(warmup=0.29).rate(100).steps == 29 and Optimizer(warmup=40 / 300).rate(90000).steps == 12000
    assert Optimizer(warmup=0.05).rate(190).steps == 9


def test_betas_and_eps_reach_adamw():
    (group, _) = Optimizer(betas=(0.8, 0.95), eps=1e-6).build(nn.Linear(3, 2), 9)["optimizer"].param_groups
    assert group["betas"] == (0.8, 0.95) and group["eps"] == 1e-6


@pytest.mark.parametrize(
    "build",
    [
        lambda: Optimizer(lr=0.0),
        lambda: Optimizer(eps=0.0),
        lambda: Optimizer(horizon=0.8),
        lambda: Optimizer(warmup_steps=-1),
        lambda: Optimizer(shape="step"),
        lambda: Optimizer(shape="constant", final=0.1),
        lambda: EMA(horizon=0.5),
    ],
)
def test_wrong_arguments_get_one_line(build):
    with pytest.raises(InputError, match="expected") as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"shape": "linear", "horizon": 1.25}, {"shape": "constant"}], ids=str)
def test_schedules_resume_from_a_safe_checkpoint(options):
    recipe = Optimizer(lr=0.1, weight_decay=0.04, final_weight_decay=0.4, **options)
    whole = train(recipe.build(nn.Linear(3, 2), 20), 20)
    first, file = recipe.build(nn.Linear(3, 2), 20), io.BytesIO()
    train(first, 8)
    torch.save([first["optimizer"].state_dict(), first["lr_scheduler"]["scheduler"].state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second = recipe.build(nn.Linear(3, 2), 20)
    second["optimizer"].load_state_dict(states[0])
    second["lr_scheduler"]["scheduler"].load_state_dict(states[1])
    assert train(second, 12) == whole[8:]


@pytest.mark.parametrize("steps", [math.inf, -1, 0])
def test_a_training_without_an_end_is_refused(steps):
    with pytest.raises(InputError, match="max_steps"):
        Optimizer().build(nn.Linear(2, 2), steps)


def test_a_frozen_module_is_refused():
    with pytest.raises(InputError, match="no trainable parameter"):
        Optimizer().build(nn.Linear(2, 2).requires_grad_(False), 10)
