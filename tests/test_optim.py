"""Schedules in closed form, parameter groups, and the optimiser over a whole training."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from jepa.errors import InputError
from jepa.optim import Cosine, Linear, Optimizer, WarmupCosine, parameter_groups


def test_linear_and_cosine_reach_their_ends_and_stay():
    for schedule in (Linear(0.99, 0.999), Cosine(0.04, 0.4)):
        ends = schedule.start, schedule.end
        assert (schedule(0, 10), schedule(10, 10), schedule(12, 10)) == pytest.approx((*ends, ends[1]))
        assert schedule(5, 10) == pytest.approx(sum(ends) / 2)
    assert Cosine(1, 0)(1, 4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_warmup_cosine_rises_in_a_line_and_falls_in_a_cosine():
    schedule = WarmupCosine(peak=1.0, warmup=0.2, start=0.1, final=0.01)
    assert [schedule(step, 50) for step in (0, 5, 10, 30, 50)] == pytest.approx([0.1, 0.55, 1.0, 0.505, 0.01])


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


def test_schedules_resume_from_a_safe_checkpoint():
    recipe = Optimizer(lr=0.1, weight_decay=0.04, final_weight_decay=0.4)
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
