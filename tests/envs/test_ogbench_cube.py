"""OGBench's Cube behind its adapter, and the oracle that plays with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import jepa.envs
from jepa.data.hdf5 import Hdf5Episodes
from jepa.envs import mujoco_env
from jepa.envs.cube_oracle import CubeOracle, seeded
from jepa.envs.ogbench_cube import success
from jepa.errors import InputError
from jepa.evaluation import PROTOCOLS, episode_pairs
from jepa.schema import Sample, Task
from jepa.tasks.collect import collect
from jepa.testing import check_task

CUBE = slice(14, 17)  # x, y, z in the state
GRASPED = 48  # steps of the oracle after which it has lifted the cube


@pytest.fixture(scope="module")
def available() -> None:
    if importlib.util.find_spec("ogbench") is None:
        pytest.skip("ogbench is not installed")
    try:
        mujoco_env.load_mujoco()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def task(available: None) -> Iterator[Task]:
    task = jepa.envs.make("ogbench_cube", num=2)
    yield task
    task.close()


def oracle(task: Task, seed: int = 0) -> CubeOracle:
    return CubeOracle(task, torch.Generator().manual_seed(seed), noise=(0.1, 0.1))


@pytest.fixture(scope="module")
def play(task: Task) -> tuple[list[Sample], list[torch.Tensor]]:
    """What two environments showed, and the actions, while the oracle picked the cube up and carried it."""
    seen, policy, actions = [task.reset(seed=0)], oracle(task), []
    for _ in range(GRASPED + 12):
        actions.append(policy.act(seen[-1]))
        seen.append(task.step(actions[-1]).sample)
    return seen, actions


def test_contract(task: Task) -> None:
    check_task(task, steps=3)
    names = task.specs.observation.state_names
    assert names[CUBE] == ("cube_0_x", "cube_0_y", "cube_0_z") and len(names) == 41
    assert task.specs.evaluation.protocol in PROTOCOLS and task.specs.evaluation.env == "visual-cube-single-v0"


def test_the_oracle_lifts_the_cube(play: tuple[list[Sample], list[torch.Tensor]]) -> None:
    height = torch.cat([sample.state for sample in play[0]], dim=1)[..., 16]
    assert (height[:, 0] - 0.02).abs().max() < 1e-3, "a cube begins on the table"
    assert (height[:, GRASPED] > 0.06).all()


def test_a_recorded_state_is_all_there_is_to_know(task: Task, play: tuple[list[Sample], list[torch.Tensor]]) -> None:
    """Put at the state of a grasp in mid-air, the same actions give the same film and states, bit for bit."""
    seen, actions = play
    present = task.reset(state=seen[GRASPED].state[:, 0])
    for number in range(GRASPED, len(actions) + 1):
        for name in ("video", "state", "proprio"):
            assert torch.equal(getattr(present, name), getattr(seen[number], name)), f"{name} at step {number}"
        if number < len(actions):
            present = task.step(actions[number]).sample
    assert (seen[-1].state - seen[GRASPED].state)[..., CUBE].norm(dim=-1).min() > 0.01, "nothing was carried"


def test_the_goal_is_seen_in_the_goal_image_alone(task: Task) -> None:
    start = task.reset(seed=2).state[:, 0]
    views = [task.reset(seed=seed, state=start) for seed in (3, 4)]
    assert torch.equal(views[0].video, views[1].video)
    assert not torch.equal(views[0].goal.video, views[1].goal.video)


def test_the_cube_is_visible_at_64_pixels(task: Task) -> None:
    """It is the only red thing: where the state holds it, to a pixel; without it, nothing is red."""
    start = task.reset(seed=5).state[:, 0]
    centres = []
    for y in (-0.2, 0.2):
        start[:, 14:16] = torch.tensor([0.45, y])
        video = task.reset(state=start).video[:, 0].int()
        red = (video[:, 0] > 100) & (video[:, 0] > 2 * video[:, 1]) & (video[:, 0] > 1.5 * video[:, 2])
        assert (red.sum(dim=(1, 2)) >= 12).all(), "less than a dozen pixels"
        centres.append([np.mean(np.nonzero(row.numpy())[1]) for row in red])
    apart = np.subtract(*centres)
    assert (np.abs(apart) > 20).all() and np.ptp(apart) < 1, "0.4 m of the table are a third of the image"


def test_success_is_of_the_cube_alone_and_of_every_cube() -> None:
    goal = torch.zeros(1, 41)
    state = torch.full((1, 41), 3.0)
    state[:, CUBE] = torch.tensor([0.024, 0.0, 0.031])
    assert success(state, goal, cubes=(14,)).item(), "the arm does not count"
    state[:, 16] = 0.033
    assert not success(state, goal, cubes=(14,)).item(), "0.04 m holds jointly"
    two = torch.zeros(2, 41)
    two[1, 21] = 0.05
    assert success(two, goal, cubes=(14, 21)).tolist() == [True, False]


def test_the_reward_is_about_our_goal_and_ends_nothing(task: Task) -> None:
    start = task.reset(seed=7)
    far = start.state[:, 0].clone()
    far[:, 15] = -far[:, 15].sign() * 0.25
    rewards = []
    for goal in (start.state[:, 0], far):
        present = task.reset(state=start.state[:, 0], goal=goal)
        outcome = task.step(task.idle(present))
        rewards.append(outcome.reward.tolist())
        assert not outcome.terminated.any() and outcome.success.tolist() == outcome.reward.bool().tolist()
    assert rewards == [[1.0, 1.0], [0.0, 0.0]]


def test_idle_leaves_the_cube_and_nearly_the_arm(task: Task) -> None:
    """Relative control sags a little under the arm's weight."""
    first = present = task.reset(seed=6)
    for _ in range(5):
        present = task.step(task.idle(present)).sample
    torch.testing.assert_close(present.state[..., CUBE], first.state[..., CUBE], rtol=0, atol=1e-3)
    torch.testing.assert_close(present.proprio[..., :6], first.proprio[..., :6], rtol=0, atol=0.03)


def test_the_oracle_is_seeded_and_leaves_numpy_alone(task: Task) -> None:
    present = task.reset(seed=0)
    before = np.random.get_state()[1].copy()
    first, again, other = (oracle(task, seed).act(present) for seed in (0, 0, 1))
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(first, again) and not torch.equal(first, other)
    with seeded(torch.Generator()), pytest.raises(ZeroDivisionError):
        with seeded(torch.Generator()):
            raise ZeroDivisionError
    assert np.array_equal(np.random.get_state()[1], before), "an error is no reason to leave it seeded"


def test_a_new_play_begins_where_one_was_reset(task: Task) -> None:
    policy, present = oracle(task), task.reset(seed=0)
    policy.act(present)
    plays = list(policy._plays)
    policy.reset(torch.tensor([False, True]))
    policy.act(present)
    assert policy._plays[0] is plays[0] and policy._plays[1] is not plays[1]


def test_the_oracle_plays_the_cube_only() -> None:
    with pytest.raises(InputError, match="plays OGBench's Cube") as error:
        CubeOracle(jepa.envs.make("two_rooms"), torch.Generator())
    assert "\n" not in str(error.value)


def test_collected_episodes_give_pairs_whose_cube_moved(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "cube.h5"
    collect("ogbench_cube", out, script="oracle", episodes=2, steps=60, workers=0)
    episodes = Hdf5Episodes(out)
    for name, moved in (("ogbench_cube/swm25-50", False), ("ogbench_cube/moved25-50", True)):
        starts, goals = episode_pairs(episodes, PROTOCOLS[name].with_pairs(8), task.success)
        assert bool(task.success(starts, goals).any()) is not moved
    begun = task.reset(state=starts[:2], goal=goals[:2])
    assert torch.equal(begun.state[:, 0], starts[:2]) and torch.equal(begun.goal.state[:, 0], goals[:2])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ogbench" else find(name))
    with pytest.raises(InputError, match=r"pip install 'jepa\[robots\]'"):
        jepa.envs.make("ogbench_cube")
