"""MetaWorld's reach tasks: states that go on exactly, goals of its expert, and the script that records them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

import jepa.envs
from jepa.envs import metaworld, mujoco_env
from jepa.envs.policies import ContactPlay, Expert
from jepa.errors import InputError
from jepa.evaluation import find_protocol
from jepa.schema import Outcome, Policy, Task

NAMES = ("metaworld_reach", "metaworld_reach_wall")
HAND, FINGERS = metaworld.HAND, metaworld.FINGERS


@pytest.fixture(scope="module")
def tasks() -> Any:
    """Two environments of each task, shared by the tests of this module."""
    if importlib.util.find_spec("metaworld") is None:
        pytest.skip("metaworld is not installed: pip install 'jepa[robots]'")
    try:
        mujoco_env.load_mujoco()
    except InputError as error:
        pytest.skip(str(error))
    made = {name: jepa.envs.make(name, num=2, size=32) for name in NAMES}
    yield made
    for task in made.values():
        task.close()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def play(task: Task, actions: torch.Tensor) -> list[Outcome]:
    return [task.step(action) for action in actions]


def run(task: Task, policy: Policy, steps: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States [B,T+1,X] and actions [B,T,4]."""
    present = task.reset(seed=seed)
    policy.reset(torch.ones(task.num, dtype=torch.bool))
    states, actions = [present.state], []
    for _ in range(steps):
        actions.append(policy.act(present))
        present = task.step(actions[-1]).sample
        states.append(present.state)
    return torch.cat(states, 1), torch.stack(actions, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_put_back_goes_on_exactly_as_it_did(tasks, name):
    """In the middle of a movement, the fingers on the table and the gripper closing."""
    task = tasks[name]
    task.reset(seed=1)
    down = torch.tensor([0.2, 0.3, -1.0, 1.0])
    noise = 0.5 * torch.randn(30, 2, 4, generator=generator())
    actions = (down + noise).clamp(-1, 1)
    before = play(task, actions[:18])[-1].sample
    first = play(task, actions[18:])
    goal = before.goal.state[:, 0]
    task.reset(seed=9)
    play(task, -actions[:5])
    again = task.reset(state=before.state[:, 0], goal=goal)
    assert torch.equal(again.state, before.state) and torch.equal(again.video, before.video)
    for ours, theirs in zip(play(task, actions[18:]), first):
        assert torch.equal(ours.sample.state, theirs.sample.state), "another state"
        assert torch.equal(ours.sample.video, theirs.sample.video), "another frame"
        assert torch.equal(ours.reward, theirs.reward)
    assert (first[-1].sample.state - before.state).abs()[..., HAND].max() > 0.02, "nothing moved"


def test_rounding_leaves_the_physics_as_they_are(tasks):
    """One simulator is rounded after every step and starts its solver afresh, the other is MetaWorld's own."""
    adapter = tasks["metaworld_reach"].pool.adapters[0]
    start, goal = adapter.reset(4, None, None)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)
    ours = [adapter.step(action).state for action in actions][-1]
    adapter.place(start.state, goal.state)
    for action in actions:
        adapter.simulator.step(action)
    adapter._keep()
    np.testing.assert_allclose(adapter.state()[HAND], ours[HAND], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_success_and_reward_are_those_of_the_simulator_about_the_goal_image(tasks, name):
    task = tasks[name]
    adapter, policy = task.pool.adapters[0], Expert(task, generator(), noise=0.0, goals=1.0)
    present, seen = task.reset(seed=2), []
    assert not task.success(present.state[:, 0], present.goal.state[:, 0]).any(), "a goal within reach of the start"
    for _ in range(60):
        outcome = task.step(policy.act(present))
        present = outcome.sample
        distance = np.linalg.norm(adapter.simulator.tcp_center - present.goal.state[0, 0, FINGERS].numpy())
        seen.append((bool(outcome.success[0]), distance <= 0.05))
        _, info = adapter.simulator.evaluate_state(np.zeros(39), np.zeros(4, np.float32))
        assert info["success"] == outcome.success[0]
        assert abs(info["unscaled_reward"] - outcome.reward[0]) < 1e-3
    assert all(ours == theirs for ours, theirs in seen)
    assert any(ours for ours, _ in seen), "the expert never reached its goal"


def test_the_goal_is_where_the_expert_ends_with_the_puck_untouched(tasks):
    for name, low, high in (("reach", (-0.1, 0.8), (0.1, 0.9)), ("reach_wall", (-0.05, 0.85), (0.05, 0.9))):
        task = tasks[f"metaworld_{name}"]
        sample = task.reset(seed=5)
        start, goal = sample.state[:, 0], sample.goal.state[:, 0]
        assert (goal[:, :2] > torch.tensor(low) - 0.03).all() and (goal[:, :2] < torch.tensor(high) + 0.03).all()
        puck = slice(metaworld.OBJECT.start, metaworld.OBJECT.start + 3)
        assert (start[:, puck] - goal[:, puck]).abs().max() < 2e-3
        assert (goal[0, HAND] - goal[1, HAND]).norm() > 0.01, "two seeds, one goal"
        assert not torch.equal(start[0, puck], start[1, puck]), "two seeds, one puck"


def test_an_episode_goes_on_beyond_metaworlds_limit(tasks):
    task = tasks["metaworld_reach"]
    present = task.reset(seed=6)
    task.pool.adapters[0].simulator.curr_path_length = 500  # where MetaWorld refuses another step
    assert not task.step(task.idle(present)).terminated.any()


def test_the_expert_covers_more_than_its_stroke_to_the_goal(tasks):
    task = tasks["metaworld_reach"]
    stroke, pure = run(task, Expert(task, generator(), noise=0.0, goals=1.0, patience=10**6), 40)
    assert pure[..., 3].abs().max() == 0, "MetaWorld's policy leaves the gripper alone"
    runs = [run(task, Expert(task, generator(seed)), 5)[1] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    states, actions = run(task, Expert(task, generator()), 100)
    assert actions.abs().max() <= 1 and actions[..., 3].std() > 0.1
    narrow, wide = (film[..., HAND].flatten(0, 1).aminmax(dim=0) for film in (stroke, states))
    spans = [ends.max - ends.min for ends in (narrow, wide)]
    assert spans[1][0] > 2 * spans[0][0] and spans[1].prod() > 3 * spans[0].prod(), f"{spans}"


def test_a_reset_of_one_environment_sends_it_to_its_new_goal(tasks):
    task = tasks["metaworld_reach"]
    policy = Expert(task, generator(), noise=0.0, goals=1.0)
    task.reset(seed=0)
    present = task.reset(seed=3)
    policy.act(present)
    before = policy._point.clone()
    mask = torch.tensor([False, True])
    present = task.reset(seed=40, mask=mask)
    policy.reset(mask)
    policy.act(present)
    assert torch.equal(policy._point[0], before[0])
    torch.testing.assert_close(policy._point[1], present.goal.state[1, 0, HAND])


def test_names_options_and_protocols_agree(tasks):
    for name, task in tasks.items():
        rules = find_protocol(task.specs.evaluation.protocol)
        assert rules.name.startswith(f"{name}/") and rules.env == task.specs.evaluation.env == "Meta-World/MT1"
        assert rules.env_options.items() <= task.specs.evaluation.env_options.items()
        assert (rules.budget, rules.judged, rules.stops, rules.goals) == (100, "end", False, "environment")
    with pytest.raises(InputError, match="reach"):
        jepa.envs.make("Meta-World/MT1", task="reech")
    with pytest.raises(InputError, match="ContactPlay plays PushT"):
        ContactPlay(tasks["metaworld_reach"], generator())
    with pytest.raises(InputError, match="Expert plays MetaWorld"):
        Expert(jepa.envs.make("two_rooms", num=1), generator())


def test_a_missing_package_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "metaworld" else find(name))
    with pytest.raises(InputError, match=r"pip install 'jepa\[robots\]'"):
        jepa.envs.make("metaworld_reach")
