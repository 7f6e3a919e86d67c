"""Real simulators behind adapters: PushT, Reacher, PointMaze, and gymnasium environments that nobody adapted."""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import jepa.envs
from jepa.envs import mujoco_env, point_maze, pusht, reacher
from jepa.errors import InputError
from jepa.schema import Outcome, Task
from jepa.testing import check_task

SIMULATORS = ("pusht", "reacher", "point_maze", "metaworld_reach")
NEEDS = {"pusht": "gym_pusht", "reacher": "mujoco", "point_maze": "gymnasium_robotics", "metaworld_reach": "metaworld"}


@functools.cache
def missing(name: str) -> str:
    """Why a simulator cannot run here; empty if it can."""
    if importlib.util.find_spec(NEEDS[name]) is None:
        return f"{NEEDS[name]} is not installed"
    if name != "pusht":
        try:
            mujoco_env.load_mujoco()
        except InputError as error:
            return str(error)
    return ""


def task_of(name: str, **options: Any) -> Task:
    if reason := missing(name):
        pytest.skip(reason)
    return jepa.envs.make(name, **options)


@pytest.fixture(scope="module")
def tasks() -> Any:
    """One pair of environments of each kind, shared by the tests of this module."""
    cache: dict[str, Task] = {}

    def get(name: str) -> Task:
        if name not in cache:
            cache[name] = task_of(name, num=2)
        return cache[name]

    yield get
    for task in cache.values():
        task.close()


def walk(task: Task, steps: int) -> list[Outcome]:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(task.specs.action.low), torch.tensor(task.specs.action.high)
    return [task.step(low + (high - low) * torch.rand(task.num, len(low), generator=generator)) for _ in range(steps)]


@pytest.mark.parametrize("name", SIMULATORS)
def test_contract(name: str, tasks: Callable[[str], Task]) -> None:
    check_task(tasks(name))


@pytest.mark.parametrize("name", SIMULATORS)
def test_one_seed_gives_one_film(name: str, tasks: Callable[[str], Task]) -> None:
    task = tasks(name)
    films = []
    for _ in range(2):
        first = task.reset(seed=11)
        films.append(torch.cat([first.video, *[outcome.sample.video for outcome in walk(task, 8)]], dim=1))
    assert torch.equal(films[0], films[1])
    assert not torch.equal(films[0][0], films[0][1]), "two seeds, one film"
    assert not torch.equal(films[0][:, 0], films[0][:, -1]), "nothing moved"


@pytest.mark.parametrize("name", SIMULATORS)
def test_state_round_trip(name: str, tasks: Callable[[str], Task]) -> None:
    task = tasks(name)
    task.reset(seed=2)
    seen = walk(task, 6)[-1].sample
    again = task.reset(state=seen.state[:, 0], goal=seen.state[:, 0])
    # PushT draws polygons at whole pixels of its canvas, which the rounding of the state to float32 may tip
    levels = 12 if name == "pusht" else 0
    for video in (again.video, again.goal.video):
        assert (video.int() - seen.video.int()).abs().max() <= levels
    torch.testing.assert_close(again.state, seen.state, rtol=0, atol=1e-4)
    assert task.success(again.state[:, 0], again.goal.state[:, 0]).all()


@pytest.mark.parametrize("name", SIMULATORS)
def test_an_image_shows_the_state_and_no_mark_of_the_goal(name: str, tasks: Callable[[str], Task]) -> None:
    """Starts that are equal look equal whatever the goal; otherwise a model could read the goal off the present."""
    task = tasks(name)
    start = task.reset(seed=2).state[:, 0]
    views = [task.reset(seed=seed, state=start) for seed in (3, 4)]
    assert torch.equal(views[0].video, views[1].video)
    assert not torch.equal(views[0].goal.video, views[1].goal.video)


@pytest.mark.parametrize("name", SIMULATORS)
def test_idle_stays_where_it_is(name: str, tasks: Callable[[str], Task]) -> None:
    task = tasks(name)
    first = present = task.reset(seed=6)
    for _ in range(5):
        present = task.step(task.idle(present)).sample
    # MetaWorld's arm has a joint to spare: its elbow swings on while the hand rests
    part = "proprio" if name == "metaworld_reach" else "state"
    there, here = getattr(first, part), getattr(present, part)
    torch.testing.assert_close(here, there, rtol=0, atol=0.02 if name != "pusht" else 1.0)


def test_options_are_recorded_and_make_the_task_again(tasks: Callable[[str], Task]) -> None:
    spec = tasks("reacher").specs.evaluation
    assert spec.env_options["fast_render"] is True and spec.protocol == "reacher/25-50"
    assert tasks("point_maze").specs.evaluation.protocol == "point_maze/25-50"
    assert tasks("pusht").specs.evaluation.protocol == "pusht/swm25-50"
    again = jepa.envs.make(spec.env, num=2, **spec.env_options)
    assert again.specs.differences(tasks("reacher").specs) == []
    again.close()


def test_fast_render_reaches_the_gl_context(tasks: Callable[[str], Task]) -> None:
    quality = tasks("reacher").pool.adapters[0].model.vis.quality
    assert (quality.shadowsize, quality.offsamples) == (0, 0)


@pytest.mark.parametrize("env", ["reacher", "pusht", "point_maze"])
def test_workers_equal_this_process(tasks: Callable[[str], Task], env: str) -> None:
    here = task_of(env, num=3)
    there = task_of(env, num=3, workers=2)  # after this process has a GL context
    for task in (here, there):
        task.reset(seed=4)
    for ours, theirs in zip(walk(here, 4), walk(there, 4)):
        assert torch.equal(ours.sample.video, theirs.sample.video) and torch.equal(ours.reward, theirs.reward)
    with pytest.raises(InputError, match="shape"):
        there.step(torch.zeros(2, 2))  # two environments of three
    here.close()
    there.close()


def test_success_by_the_published_tests() -> None:
    goal = torch.tensor([[100.0, 100.0, 200.0, 200.0, 0.1]])
    near = goal + torch.tensor([[13.0, 0.0, 0.0, 15.0, math.pi / 9 - 0.01 - 2 * math.pi]])
    assert pusht.success(near, goal).item()
    assert not pusht.success(goal + torch.tensor([[13.0, 0, 0, 16, 0]]), goal).item(), "20 px holds jointly"
    assert not pusht.success(goal + torch.tensor([[0.0, 0, 0, 0, math.pi / 9 + 0.01]]), goal).item()
    arm = torch.tensor([[3.13, 1.0, 0.0, 0.0]])
    assert reacher.success(arm, torch.tensor([[-3.13, 1.04, 9.0, 9.0]])).item()
    assert not reacher.success(arm, torch.tensor([[3.13, 1.06, 0.0, 0.0]])).item()
    ball = torch.zeros(1, 4)
    assert point_maze.success(ball, torch.tensor([[0.3, 0.39, 5.0, 0.0]])).item()
    assert not point_maze.success(ball, torch.tensor([[0.3, 0.41, 0.0, 0.0]])).item()


def test_unadapted_mujoco_environment() -> None:
    if reason := missing("reacher"):
        pytest.skip(reason)
    pendulum = jepa.envs.make("InvertedPendulum-v5", num=1, size=32)
    check_task(pendulum)
    assert pendulum.specs.evaluation.env_options["fast_render"] is True
    pendulum.close()


class Blinker(gymnasium.Env[Any, Any]):
    """Ends at the third step; observes an image, a speed and a clock; renders nothing."""

    metadata = {"render_modes": []}
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        {
            "view": gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8),
            "speed": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "clock": gymnasium.spaces.Box(0, np.inf, (1,), np.float32),
        }
    )

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def _look(self) -> dict[str, Any]:
        shade = np.full((40, 40, 3), self.base + 10 * self.clock, np.uint8)
        clock = np.array([self.clock], np.float32)
        return {"view": shade, "speed": np.full(2, self.base, np.float32), "clock": clock}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock, self.base = 0, int(self.np_random.integers(100))
        return self._look(), {}

    def step(self, action: Any) -> Any:
        assert action.shape == (1,)
        self.clock += 1
        return self._look(), 1.0, self.clock == 3, False, {}


@pytest.fixture
def blinker() -> Any:
    gymnasium.register("tests/Blinker-v0", Blinker)
    yield "tests/Blinker-v0"
    del gymnasium.registry["tests/Blinker-v0"]


def test_any_environment_from_its_observation(blinker: str) -> None:
    task = jepa.envs.make(blinker, num=2, size=20, pixels="observation", proprio_key="speed")
    check_task(task, steps=2)
    assert task.specs.observation.state_names == ("speed_0", "speed_1", "clock_0")
    sample = task.reset(seed=0)
    assert torch.equal(sample.state[..., :2], sample.proprio)
    assert (sample.video.flatten(1) == sample.proprio[:, 0, :1]).all(), "the frame is of another moment"
    with pytest.raises(InputError, match="cannot be put at a state"):
        task.reset(state=torch.zeros(2, 3))


def test_what_ended_does_nothing_until_reset(blinker: str) -> None:
    task = jepa.envs.make(blinker, num=2, pixels="observation")
    task.reset(seed=0)
    outcomes = [task.step(torch.zeros(2, 1)) for _ in range(2)]
    task.reset(mask=torch.tensor([False, True]))
    outcomes += [task.step(torch.zeros(2, 1)) for _ in range(2)]
    assert [outcome.terminated.tolist() for outcome in outcomes] == [[False] * 2] * 2 + [[True, False]] * 2
    assert [outcome.reward.tolist() for outcome in outcomes[2:]] == [[1.0, 1.0], [0.0, 1.0]]
    assert torch.equal(outcomes[3].sample.video[0], outcomes[2].sample.video[0])
    assert not torch.equal(outcomes[3].sample.video[1], outcomes[2].sample.video[1])


def test_bad_input_is_one_line_with_advice(blinker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("two_room", {}, "did you mean 'two_rooms'"),
        ("Recher-v5", {}, "did you mean 'Reacher-v5'"),
        ("PushT-v0", {}, "did you mean"),
        ("nowhere/At-all-v0", {}, "known short names"),
        ("no_such_module:X-v0", {}, "unknown environment"),
        ("reacher", {"fast_rendr": True}, "did you mean 'fast_render'"),
        ("reacher", {"fast_render": "yes"}, "expected bool"),
        ("pusht", {"layout": "random"}, "unknown option"),
        ("two_rooms", {"num": 0}, "the least is 1"),
        ("CartPole-v1", {"idle": 2}, "expected 0 to 1"),
        (blinker, {}, "choose pixels=observation"),
        (blinker, {"pixels": "observation", "proprio_key": "sped"}, "choose proprio_key from: speed, clock"),
        (blinker, {"pixels": "observation", "make_options": {"colour": 1}}, "cannot be made with"),
    ]
    for name, options, advice in cases:
        with pytest.raises(InputError, match=advice) as error:
            jepa.envs.make(name, **options)
        assert "\n" not in str(error.value)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = ("gym_pusht", "gymnasium_robotics")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find(name))
    for name in ("pusht", "point_maze"):
        with pytest.raises(InputError, match=r"pip install 'jepa\[robots\]'"):
            jepa.envs.make(name)
    mujoco_env.load_mujoco.cache_clear()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(InputError, match=r"pip install 'jepa\[robots\]'"):
        jepa.envs.make("reacher")


def test_missing_egl_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("reacher"):
        pytest.skip(reason)
    mujoco_env.load_mujoco.cache_clear()
    monkeypatch.setitem(sys.modules, "mujoco.gl_context", None)
    with pytest.raises(InputError, match="apt-get install libegl1"):
        jepa.envs.make("reacher")
