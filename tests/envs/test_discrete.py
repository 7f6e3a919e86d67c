"""Discrete actions, from the space to the step: recorded as choices, learned from, planned for, never mixed."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from jepa.checkpoints import load
from jepa.data.hdf5 import Hdf5Episodes
from jepa.envs import make
from jepa.envs.adapter import box_bounds, discrete_actions
from jepa.envs.policies import SCRIPTS, DoNothing, RandomPolicy, SmoothRandomPolicy
from jepa.errors import InputError
from jepa.evaluation import EvaluationProtocol, evaluate
from jepa.planning import CEM, MPC, CategoricalCEM, GoalLatent, TreeSearch, check_specs
from jepa.planning.choices import menu_of
from jepa.schema import ActionSpec, Sample
from jepa.testing import check_episodes, check_task
from probes.acting import ProbePolicy
from probes.policy import GoalCloning

WIDE = 9  # cells of the street
FIT = ("--data.windows_per_epoch=64", "--data.val_windows=8", "--trainer.max_steps=6", "--trainer.val_check_interval=6")
PLANNERS = (CategoricalCEM(), TreeSearch(), TreeSearch(rule="puct"))


class Street(gymnasium.Env):
    """A mark in a street of cells: action 5 stays, 6 goes left, 7 goes right; whatever else is asked for is a fault."""

    metadata = {"render_modes": ["rgb_array"]}
    action_space = gymnasium.spaces.Discrete(3, start=5)
    observation_space = gymnasium.spaces.Box(0, WIDE, (1,), np.float32)
    asked: list[object] = []

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(WIDE))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is no action"
        self.asked.append(action)
        self.place = int(np.clip(self.place + (0, -1, 1)[int(action) - 5], 0, WIDE - 1))
        return np.array([self.place], np.float32), 0.0, False, False, {}

    def render(self):
        view = np.zeros((16, WIDE * 4, 3), np.uint8)
        view[4:12, 4 * self.place : 4 * self.place + 4] = 255
        return view


class StreetWorld:
    """Latents are places: what a trained world would know of the street. Blocks of two environment steps."""

    def __init__(self, specs, block=2):
        self.specs = replace(specs, action=replace(specs.action, block=block))

    def encode(self, sample):
        columns = sample.video[:, :, 0].float().mean(2)  # [B,T,W]
        weight = torch.arange(columns.shape[-1]) + 0.5
        return ((columns * weight).sum(-1) / columns.sum(-1))[..., None, None] * WIDE / columns.shape[-1]

    def rollout(self, z, action, past=None):
        assert torch.equal(self.specs.action.clip(action), action), "a candidate is a mixture of choices"
        moves = action.unflatten(-1, (-1, 3)) @ torch.tensor([0.0, -1.0, 1.0])
        place, path = z[:, -1:, 0, 0].expand(-1, action.shape[1]), []
        for step in moves.flatten(2).unbind(-1):
            place = (place + step).clamp(0.5, WIDE - 0.5)
            path.append(place)
        return torch.stack(path, -1).unflatten(-1, (action.shape[2], -1))[..., -1, None, None]


@pytest.fixture
def street():
    gymnasium.register("tests/Street-v0", Street)
    Street.asked.clear()
    yield "tests/Street-v0"
    del gymnasium.registry["tests/Street-v0"]


def rules(env, **options):
    return EvaluationProtocol("street", env, env_options={"tolerance": 0.4}, pairs=24, budget=10, **options)


def sample(num):
    return Sample(video=torch.zeros(num, 1, 3, 16, 16, dtype=torch.uint8))


def test_a_task_of_choices_keeps_the_contract(street):
    task = make(street, num=2, size=16, idle=2)
    check_task(task)
    assert task.specs.action == ActionSpec((0.0,) * 3, (1.0,) * 3, (0.0,) * 3, (1.0,) * 3, choices=3)
    assert task.idle(sample(2)).tolist() == [[0.0, 0.0, 1.0]] * 2
    assert torch.equal(menu_of(task.specs.action, 9), torch.eye(3)), "the menu is the space, whatever the levels"
    Street.asked.clear()
    for choice in torch.eye(3):
        task.step(choice.repeat(2, 1))
    assert Street.asked == [5, 5, 6, 6, 7, 7] and all(isinstance(action, np.integer) for action in Street.asked)


def test_mixtures_are_refused_before_they_reach_the_environment(street):
    task = make(street, num=2, size=16)
    task.reset(seed=0)
    Street.asked.clear()
    for wrong in ([0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0]):
        with pytest.raises(InputError, match="no choices; expected one-hot vectors of width 3") as told:
            task.step(torch.tensor([[1.0, 0.0, 0.0], wrong]))
        assert "\n" not in str(told.value)
    assert not Street.asked


@pytest.mark.parametrize(
    ("space", "first", "last"),
    [
        (gymnasium.spaces.Discrete(4, start=-1), -1, 2),
        (gymnasium.spaces.MultiDiscrete([2, 3], start=[0, 4]), [0, 4], [1, 6]),
        (gymnasium.spaces.MultiDiscrete(np.array([[2], [3]])), [[0], [0]], [[1], [2]]),
        (gymnasium.spaces.MultiBinary(3), [0, 0, 0], [1, 1, 1]),
    ],
)
def test_every_action_of_a_discrete_space_is_in_the_menu_once(space, first, last):
    menu = discrete_actions("any", space)
    assert all(space.contains(action) for action in menu)
    assert (menu[0].tolist(), menu[-1].tolist()) == (first, last)
    space.seed(0)
    drawn = {str(np.asarray(space.sample()).tolist()) for _ in range(400)}
    assert sorted(drawn) == sorted(str(action.tolist()) for action in menu), "not the actions that the space draws"


def test_other_spaces_and_wrong_numbers_are_told_in_one_line(street):
    assert discrete_actions("any", gymnasium.spaces.Box(-1, 1, (2,))) == []
    for space, words in ((gymnasium.spaces.Discrete(1), "has 1 discrete"), (gymnasium.spaces.MultiBinary(11), "2048")):
        with pytest.raises(InputError, match=words):
            discrete_actions("any", space)
    both = gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)))
    with pytest.raises(InputError, match="takes Tuple actions; choose one with Box or discrete actions"):
        box_bounds("any", both)
    with pytest.raises(InputError, match="idle=3; expected 0 to 2"):
        make(street, size=16, idle=3)
    with pytest.raises(InputError, match="idle=1; expected 0 to 0"):
        make("Pendulum-v1", size=16, idle=1)


def test_scripts_draw_from_the_space(street):
    task = make(street, num=4000, size=16)
    for kind in (RandomPolicy, SmoothRandomPolicy):
        action = kind(task, torch.Generator().manual_seed(0)).act(sample(4000))
        assert torch.equal(task.specs.action.clip(action), action)
        assert (action.mean(0) - 1 / 3).abs().max() < 0.03, f"{kind.__name__} prefers a choice: {action.mean(0)}"
    assert (DoNothing(task).act(sample(4000)).argmax(-1) == 0).all()
    smooth = SmoothRandomPolicy(task, torch.Generator().manual_seed(0), correlation=10)
    moves = torch.stack([smooth.act(sample(4000)).argmax(-1) for _ in range(2)])
    assert (moves[0] == moves[1]).float().mean() > 0.7, "a choice does not last"


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: getattr(planner, "rule", "categorical"))
@pytest.mark.parametrize("execute", [1, 2])
def test_planners_act_by_whole_choices_and_reach_the_goal(street, planner, execute):
    task = make(street, num=8, size=36, tolerance=0.4)
    policy = MPC(StreetWorld(task.specs), planner, GoalLatent(reduce="sum"), horizon=4, execute=execute)
    report = evaluate(policy, task, rules(street), decisions=0, floors=False, progress=False)
    assert report.successes == report.pairs, f"{report.successes} of {report.pairs}"
    # the environment refuses what is no action; pairs that are done wait with one too
    assert {int(action) for action in Street.asked} == {5, 6, 7}


def test_a_policy_probe_acts_by_whole_choices(street):
    """What a regression answers is a mixture; the choice that it gives the greatest share is taken."""
    task = make(street, num=3, size=36)
    world, probe = StreetWorld(task.specs), GoalCloning(8)
    probe.build(torch.randn(40, 2, 1, 1), world.specs.action.clip(torch.rand(40, 6)))
    policy, present = ProbePolicy(world, probe), task.reset(seed=0)
    policy.reset(torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        z, goal = world.encode(present), world.encode(present.goal)
        wanted = probe.act(z, goal).unflatten(1, (2, 3)).argmax(-1)
    for step in range(2):
        action = policy.act(present, active=torch.tensor([True, True, False]))
        assert action[:2].argmax(-1).tolist() == wanted[:2, step].tolist()
        present = task.step(action).sample


def test_the_floors_of_choices(street):
    task = make(street, num=8, size=36, tolerance=0.4)
    policy = MPC(StreetWorld(task.specs), CategoricalCEM(), GoalLatent(reduce="sum"), horizon=4)
    report = evaluate(policy, task, rules(street), decisions=0, progress=False)
    assert report.successes == 24 > report.floors["random"].successes > report.floors["idle"].successes
    # the first choice stays: only pairs that are solved at the start count
    assert set(report.floors["idle"].steps) <= {-1, 0}


def test_cart_pole_is_collected_learned_and_acted_in(workshop, jepa, tmp_path):
    file = workshop.folder / "data" / "cart_pole.h5"
    recorded = ("--steps=30", "--num=4", "--size=32", f"--out={file}")
    made = jepa("collect", "CartPole-v1", "--episodes=12", *recorded)
    assert made.code == 0, made.err
    store = Hdf5Episodes(file)
    check_episodes(store)
    space = store.specs.action
    whole = torch.cat([store.read(i, range(store.length(i)), ("action",)).action[:-1] for i in range(len(store))])
    assert space.choices == 2 and torch.equal(space.clip(whole), whole) and set(whole.argmax(1).tolist()) == {0, 1}
    assert space.mean == pytest.approx(whole.mean(0).tolist(), abs=1e-5), "the statistics are the shares of the choices"
    more = jepa("collect", "CartPole-v1", "--episodes=14", *recorded, "--resume=true")
    assert more.code == 0 and len(Hdf5Episodes(file)) == 14, more.err

    flags = ("--vars.data=cart_pole", "--vars.run=cart_pole", "--vars.size=32", "--vars.frame_skip=2", "--vars.dim=8")
    small = ("--vars.width=16", "--vars.depth=1", "--model.world.rollout_steps=2", "--data.frames=4", *FIT)
    fitted = jepa("fit", "-c", "pretrain/two_rooms", *flags, *small, "--data.batch_size=8", "--trainer.accelerator=cpu")
    assert fitted.code == 0, fitted.err
    world = load(str(workshop.folder / "runs/cart_pole/last.ckpt"))
    assert (world.specs.action.choices, world.specs.action.block) == (2, 2)
    page = ("--data", file, "--out", tmp_path, "--windows=6", "--horizon=3", "--parts=[0.4,0.3,0.3]", "--rate=0.1")
    told = jepa("inspect", "world", workshop.folder / "runs/cart_pole/last.ckpt", *page)
    assert told.code == 0, told.err
    found = json.loads((tmp_path / "world.json").read_text())
    assert found["landscapes"] == [], "there is nothing between two choices"

    task = make("CartPole-v1", num=3, size=32)
    check_specs(world.specs, task.specs)
    with pytest.raises(InputError, match="CategoricalCEM"):
        MPC(world, CEM(), GoalLatent(), horizon=3).act(task.reset(seed=0))
    for planner in PLANNERS:
        policy, present = MPC(world, planner, GoalLatent(), horizon=3), task.reset(seed=0)
        for _ in range(5):
            present = task.step(policy.act(present)).sample
    task.close()


def test_the_scripts_of_other_environments_refuse(street):
    task = make(street, num=1, size=16)
    for name in ("wander", "contact"):
        with pytest.raises(InputError, match="SmoothRandomPolicy"):
            SCRIPTS[name](task, torch.Generator())
