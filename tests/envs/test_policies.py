"""Collection policies."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

import jepa.envs
from jepa.envs import policies
from jepa.envs.wander import Wander
from jepa.errors import InputError
from jepa.schema import Policy, Sample, Task


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def film(task: Task, policy: Policy, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States [B,T+1,X] and actions [B,T,a]."""
    present = task.reset(seed=0)
    states, actions = [present.state], []
    for _ in range(steps):
        actions.append(policy.act(present))
        present = task.step(actions[-1]).sample
        states.append(present.state)
    return torch.cat(states, dim=1), torch.stack(actions, dim=1)


@pytest.fixture
def rooms() -> Task:
    return jepa.envs.make("two_rooms", num=64)


@pytest.mark.parametrize("kind", [policies.RandomPolicy, policies.SmoothRandomPolicy, policies.Wander])
def test_bounds_and_seeds(kind: type, rooms: Task) -> None:
    runs = [film(rooms, kind(rooms, generator(seed)), 30)[1] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].abs().max() <= 1 and isinstance(kind(rooms, generator()), Policy)
    assert runs[0].std(dim=0).min() > 0.2, "environments act alike"


def test_held_actions_and_a_reset_in_between(rooms: Task) -> None:
    policy = policies.RandomPolicy(rooms, generator(), hold=3)
    acts = [policy.act(Sample()) for _ in range(4)]
    assert torch.equal(acts[0], acts[2]) and not (acts[2] == acts[3]).any()
    policy.reset(torch.arange(64) == 5)
    after = policy.act(Sample())
    assert torch.equal(after[:5], acts[3][:5]) and not (after[5] == acts[3][5]).any()
    assert (policies.RandomPolicy(rooms, generator()).act(Sample()).mean().abs()) < 0.2


def test_smooth_noise_has_the_promised_correlation(rooms: Task) -> None:
    policy = policies.SmoothRandomPolicy(rooms, generator(), correlation=10, spread=0.2)
    action = torch.stack([policy.act(Sample()) for _ in range(1000)])
    variance = (action**2).mean()
    assert variance.sqrt().item() == pytest.approx(0.2, rel=0.05)
    assert ((action[10:] * action[:-10]).mean() / variance).item() == pytest.approx(math.exp(-1), abs=0.05)


def test_wander_turns_smoothly_and_anywhere_on_a_bounce(rooms: Task) -> None:
    policy = Wander(rooms, generator(), turn=(0.5, 0.5), speed=1.0, switch=0.0, bounce=1.0)
    states, actions = film(rooms, policy, 120)
    heading = torch.atan2(actions[..., 1], actions[..., 0])
    turn = torch.remainder(heading.diff(dim=1) + math.pi, 2 * math.pi) - math.pi
    moved = states[:, 1:, :2] - states[:, :-1, :2]
    touched = (moved - 0.06 * actions).abs().amax(dim=2)[:, :-1] > 1e-3
    assert turn[~touched].std().item() == pytest.approx(0.5, abs=0.03)
    assert turn[touched].std().item() > 1.3
    assert (actions.norm(dim=2) ** 2).mean().item() == pytest.approx(0.5, abs=0.03), "speed is not uniform in area"


def test_wander_crosses_leans_on_walls_and_fills_the_box(rooms: Task) -> None:
    states, actions = film(rooms, Wander(rooms, generator()), 64)
    x, wall = states[..., 0], states[..., 2]
    crossed = ((x < wall)[:, 1:] != (x < wall)[:, :-1]).float().sum(1).mean()
    bounced = film(rooms, Wander(rooms, generator(), seek=0.0, bounce=1.0), 64)[0]
    rarely = ((bounced[..., 0] < wall)[:, 1:] != (bounced[..., 0] < wall)[:, :-1]).float().sum(1).mean()
    assert crossed > 1.5 * rarely, f"{crossed} crossings per episode against {rarely} without seeking"
    assert (((x - wall).abs() < 0.03) & (x.diff(dim=1, prepend=x[:, :1]).abs() < 1e-4)).float().mean() > 0.02
    assert (actions.abs() > 0.9).all(dim=2).any() and actions.abs().max() <= 1


def test_scripts_refuse_other_tasks(rooms: Task) -> None:
    with pytest.raises(InputError, match="ContactPlay plays PushT"):
        policies.ContactPlay(rooms, generator())
    present = rooms.reset(seed=0)
    assert torch.equal(policies.DoNothing(rooms).act(present), torch.zeros(64, 2))


def test_contact_play_moves_the_block_more_than_chance() -> None:
    if importlib.util.find_spec("gym_pusht") is None:
        pytest.skip("gym_pusht is not installed")
    task = jepa.envs.make("pusht", num=3)
    moved = {}
    for kind in (policies.RandomPolicy, policies.SmoothRandomPolicy, policies.ContactPlay, policies.DoNothing):
        states, actions = film(task, kind(task, generator()), 50)
        assert actions.min() >= 0 and actions.max() <= 512
        moved[kind.__name__] = states[..., 2:4].diff(dim=1).norm(dim=-1).sum(dim=1)
    assert moved["ContactPlay"].min() > 50, f"some block was never pushed: {moved}"
    assert moved["ContactPlay"].mean() > 1.5 * moved["RandomPolicy"].mean(), f"{moved}"
    assert moved["DoNothing"].max() < 3, f"{moved}"
    task.close()
