"""Physics, drawing and seeding of Two Rooms."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import jepa.envs
from jepa.envs import two_rooms as rooms
from jepa.errors import InputError
from jepa.testing import check_task


def states(*rows: tuple[float, float]) -> np.ndarray:
    return np.array([[x, y, rooms.FIXED_WALL, rooms.FIXED_DOOR] for x, y in rows], dtype=np.float32)


def angles(count: int) -> np.ndarray:
    theta = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(theta), np.sin(theta)], axis=1).astype(np.float32)


def test_no_straight_move_meets_the_wall() -> None:
    """From everywhere near the wall and the door's edges, at every angle: what a fine walk along the move sees."""
    grid_x = np.concatenate([0.5 + side * np.linspace(0.0201, 0.08, 9) for side in (-1, 1)])
    edges = [0.35 + side * (0.12 + d) for side in (-1, 1) for d in (-0.06, -0.01, -1e-3, 0.0, 1e-3, 0.01, 0.06)]
    starts = states(*[(x, y) for x in grid_x for y in edges], *[(0.5, y) for y in edges if abs(y - 0.35) <= 0.12])
    for turn in angles(360):
        ends = rooms.move(starts, np.tile(turn, (len(starts), 1)))
        assert rooms.free(np.concatenate([ends, starts[:, 2:]], axis=1)).all()
        crossed = (starts[:, 0] - 0.5) * (ends[:, 0] - 0.5) < 0
        t = (0.5 - starts[:, 0]) / np.where(crossed, ends[:, 0] - starts[:, 0], 1)
        at_wall = starts[:, 1] + t * (ends[:, 1] - starts[:, 1])
        assert (np.abs(at_wall - 0.35)[crossed] <= 0.12 + 1e-5).all()


def test_a_long_walk_changes_rooms_through_the_door_alone() -> None:
    rng = np.random.default_rng(0)
    now = np.stack([rooms.draw(rng, "random")[0] for _ in range(256)])
    crossings = 0
    for _ in range(400):
        where = rooms.move(now, rng.normal(0, 2, (256, 2)).astype(np.float32))
        assert (np.linalg.norm(where - now[:, :2], axis=1) <= rooms.STEP + 2 * rooms.GAP).all()
        crossed = np.sign(where[:, 0] - now[:, 2]) != np.sign(now[:, 0] - now[:, 2])
        assert (np.abs(now[crossed, 1] - now[crossed, 3]) <= rooms.DOOR + rooms.STEP).all()
        crossings += crossed.sum()
        now = np.concatenate([where, now[:, 2:]], axis=1)
        assert rooms.free(now).all()
    assert crossings > 50


def test_moves_are_exact_in_the_open_and_slide_along_walls() -> None:
    start = states((0.2, 0.5), (0.2, 0.5), (0.47, 0.8), (0.03, 0.5), (0.5, 0.35))
    action = np.array([[1, 0], [3, 4], [0.8, 0.6], [-1, 0], [1, 0]], dtype=np.float32)
    expected = [[0.26, 0.5], [0.236, 0.548], [0.48, 0.836], [0.02, 0.5], [0.56, 0.35]]
    np.testing.assert_allclose(rooms.move(start, action), expected, atol=2 * rooms.GAP)


def test_drawing_is_sub_pixel_and_goal_differs_at_the_dot_alone() -> None:
    empty = rooms.render_rooms(np.full(1, 0.5), np.full(1, 0.35), 64)
    for x, y in ((0.2, 0.3), (0.2003, 0.7107), (0.021, 0.021), (0.979, 0.5)):
        frame = rooms.render_dots(empty, np.array([[x, y]], dtype=np.float32))[0].astype(float)
        changed = np.argwhere((frame != empty[0]).any(axis=0))
        assert (np.abs(changed + 0.5 - 64 * np.array([y, x])).max() <= 3.4 * 1.8 + 1.5)
    weights = rooms.render_dots(empty, np.array([[0.2003, 0.7107]], dtype=np.float32))[0, 0].astype(float)
    centre = (weights.sum(axis=0) @ (np.arange(64) + 0.5), weights.sum(axis=1) @ (np.arange(64) + 0.5))
    np.testing.assert_allclose(np.array(centre) / weights.sum() / 64, [0.2003, 0.7107], atol=0.1 / 64)


def test_gymnasium_accepts_the_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("jepa/TwoRooms-v0", render_mode="rgb_array").unwrapped)


def test_view_equals_the_task() -> None:
    task = jepa.envs.make("two_rooms_random", num=3)
    present = task.reset(seed=5)
    views = [gymnasium.make("jepa/TwoRooms-v0", layout="random", render_mode="rgb_array").unwrapped for _ in range(3)]
    seen = [view.reset(seed=5 + i)[0] for i, view in enumerate(views)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for i, observation in enumerate(seen):
            np.testing.assert_array_equal(observation["pixels"], present.video[i, 0].permute(1, 2, 0))
            np.testing.assert_array_equal(observation["goal"], present.goal.video[i, 0].permute(1, 2, 0))
        action = torch.rand(3, 2, generator=generator) * 2 - 1
        present = task.step(action).sample
        seen = [view.step(action[i].numpy())[0] for i, view in enumerate(views)]


@pytest.mark.parametrize("name", ["two_rooms", "two_rooms_random"])
def test_contract(name: str) -> None:
    check_task(jepa.envs.make(name, num=4))
    check_task(jepa.envs.make(name, num=1, size=32))


def test_draws_keep_the_published_ranges_and_opposite_rooms() -> None:
    task = jepa.envs.make("two_rooms_random", num=400)
    sample = task.reset(seed=0)
    start, goal = sample.state[:, 0], sample.goal.state[:, 0]
    assert torch.equal(start[:, 2:], goal[:, 2:])
    assert ((start[:, 0] < start[:, 2]) != (goal[:, 0] < goal[:, 2])).all()
    assert not task.success(start, goal).any()
    for column, low, high in ((2, 0.3, 0.7), (3, 0.15, 0.85)):
        assert low <= start[:, column].min() < low + 0.02 and high - 0.02 < start[:, column].max() <= high
    fixed = jepa.envs.make("two_rooms", num=2).reset(seed=0)
    assert torch.allclose(fixed.state[:, 0, 2:], torch.tensor([0.5, 0.35]))


def test_factors_of_variation() -> None:
    env = gymnasium.make("jepa/TwoRooms-v0", layout="random").unwrapped
    _, free_info = env.reset(seed=1)
    _, info = env.reset(seed=1, options={"start": (0.9, 0.2), "wall": 0.6})
    np.testing.assert_allclose(info["state"], [0.9, 0.2, 0.6, free_info["state"][3]], rtol=1e-6)
    assert info["goal_state"][0] < 0.6 and info["goal_state"][1] == pytest.approx(free_info["goal_state"][1])
    _, info = env.reset(seed=1, options={"goal": (0.1, 0.2), "door": 0.5})
    assert info["state"][0] > info["state"][2] and info["state"][3] == 0.5
    with pytest.raises(InputError, match="did you mean 'wall'"):
        env.reset(options={"wal": 0.6})
    with pytest.raises(InputError, match="lies in a wall"):
        env.reset(options={"start": (0.6, 0.9), "wall": 0.6, "door": 0.2})
    with pytest.raises(InputError, match="takes"):
        env.reset(options={"start": 0.5})


def test_state_round_trip_and_given_goals() -> None:
    task = jepa.envs.make("two_rooms_random", num=8)
    task.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        outcome = task.step(torch.randn(8, 2, generator=generator))
    seen = outcome.sample
    again = task.reset(state=seen.state[:, 0], goal=seen.goal.state[:, 0])
    assert torch.equal(again.video, seen.video) and torch.equal(again.state, seen.state)
    assert torch.equal(again.goal.video, seen.goal.video)
    wrong = seen.goal.state[:, 0] + torch.tensor([0, 0, 0.01, 0])
    with pytest.raises(InputError, match="wall_x, door_y"):
        task.reset(state=seen.state[:, 0], goal=wrong)
    with pytest.raises(InputError, match="shape"):
        task.reset(state=seen.state[:, 0, :2])


def test_reaching_the_goal_is_success_and_ends_the_gymnasium_episode() -> None:
    env = gymnasium.make("jepa/TwoRooms-v0").unwrapped
    env.reset(options={"start": (0.2, 0.35), "goal": (0.32, 0.35)})
    outcomes = [env.step(np.array([1.0, 0.0], dtype=np.float32)) for _ in range(2)]
    assert [outcome[2] for outcome in outcomes] == [False, True] and outcomes[1][1] == 1.0
    with pytest.raises(InputError, match="did you mean 'random'"):
        jepa.envs.make("two_rooms", layout="randm")
