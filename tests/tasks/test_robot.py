"""A robot loop in numpy is the vector environment's loop in tensors; replays see the recorded past and no future."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa import RobotController
from jepa.errors import InputError
from jepa.models.pose_world import PoseWorld, StillViT
from jepa.models.poses import reckon
from jepa.models.targets import Frozen
from jepa.models.vjepa2_ac import PosePredictor
from jepa.planning import CEM, ICEM, MPC, GoalLatent, deadline
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Plan, Sample, Specs

SIZE = 4


class World:
    """The latent is the place in tens, which a flat colour shows, and actions add up. Records its contexts."""

    def __init__(self, block=1, history=1, proprio=0):
        action = ActionSpec((-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), block)
        seen = ObservationSpec(SIZE, SIZE, proprio_mean=(0.0,) * proprio, proprio_std=(1.0,) * proprio)
        self.specs = Specs(action, seen, EvalSpec(history=history))
        self.contexts, self.encoded, self.felt = [], 0, []

    def encode(self, sample):
        self.encoded += 1
        self.felt.append(sample.proprio)
        return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10

    def rollout(self, z, action, past=None):
        self.contexts.append((z[0, :, 0, 0].tolist(), None if past is None else past[0].tolist()))
        moves = action.unflatten(-1, (-1, 2)).sum(-2).cumsum(2)
        return (z[:, -1:].unsqueeze(1) + moves.unsqueeze(3)).reshape(*action.shape[:3], 1, 2)


class Scripted:
    """Step h of every plan is 0.1 h in the first environment step of its block, and 0.01 more in each later one."""

    def plan(self, problem, warm=None):
        block = problem.space.block
        steps = torch.arange(problem.horizon)[:, None, None] / 10 + torch.arange(block)[:, None] / 100
        action = steps.expand(-1, -1, 2).flatten(1).expand(problem.batch, -1, -1).clone()
        return Plan(action, problem.cost(action.unsqueeze(1))[:, 0])


def pixels(places, side=SIZE):
    """Places [...,2] -> uint8 [...,side,side,3]"""
    frame = np.zeros((*np.shape(places)[:-1], side, side, 3), np.uint8)
    frame[..., :2] = np.asarray(places)[..., None, None, :]
    return frame


def controller(world=None, planner=None, execute=1, horizon=3, **options):
    policy = MPC(world or World(), planner or CEM(), GoalLatent(), horizon, execute)
    return RobotController(policy, **options)


def test_a_loop_in_numpy_is_the_loop_of_the_vector_environment():
    options = {"block": 2, "history": 2}
    robots, policy = controller(World(**options), execute=2), MPC(World(**options), CEM(), GoalLatent(), 3, 2)
    place, goal = np.array([[50.0, 200.0], [120.0, 30.0]]), pixels([[90, 170], [100, 60]])
    robots.reset()
    policy.reset(torch.ones(2, dtype=torch.bool))
    for step in range(11):
        if step == 6:
            robots.reset(np.array([False, True]))
            policy.reset(torch.tensor([False, True]))
        frame = pixels(place.round())
        video, aim = (torch.from_numpy(part).permute(0, 3, 1, 2)[:, None] for part in (frame, goal))
        action = robots.act(frame, goal)
        assert isinstance(action, np.ndarray) and action.dtype == np.float32 and action.shape == (2, 2)
        assert np.array_equal(action, policy.act(Sample(video=video, goal=Sample(video=aim))).numpy())
        place = place + 10 * action
    assert np.abs(place - [[90, 170], [100, 60]]).max() < 12


def test_one_robot_is_a_batch_of_one():
    one, many = controller(), controller()
    for place in ([50, 60], [58, 66]):
        alone = one.act(pixels(place), pixels([90, 90]))
        assert alone.shape == (2,) and np.array_equal(alone, many.act(pixels([place]), pixels([[90, 90]]))[0])


def test_every_call_gives_the_next_action_of_a_block_and_looks_only_where_one_begins():
    world = World(block=3, history=2)
    robot = controller(world, Scripted(), execute=2)
    taken = [robot.act(pixels([10 * t, 0]), pixels([200, 0]))[0] for t in range(7)]
    assert taken == pytest.approx([0, 0.01, 0.02, 0.1, 0.11, 0.12, 0])  # two blocks, then a plan from the seventh frame
    assert world.encoded == 4  # frames 0, 3, 6 and the goal
    (first, before), (second, past) = world.contexts
    assert first == [0] and before is None and second == [3, 6]
    assert past[0] == pytest.approx([0.1, 0.1, 0.11, 0.11, 0.12, 0.12])


def test_what_was_really_executed_is_the_past_of_the_next_plan():
    world = World(history=3)
    robot = controller(world, Scripted(), execute=2)
    for t in range(3):
        robot.act(pixels([10 * t, 0]), pixels([200, 0]))
        robot.follow(np.array([0.7 + t / 10, -0.5]))
    assert world.contexts[-1][1] == [pytest.approx([0.7, -0.5]), pytest.approx([0.8, -0.5])]


@pytest.mark.parametrize(
    "frame, word",
    [
        (pixels([1, 2]).astype(np.float32), r"frame is float32 \[4, 4, 3\]: expected uint8 \[H,W,3\]"),
        (pixels([1, 2])[..., :2], r"uint8 \[4, 4, 2\]: expected uint8 \[H,W,3\]"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), r"expected uint8 \[B,H,W,3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \[3, 4, 4\]: expected"),
        (pixels([1, 2], side=8), "frame has 8x8 pixels, the checkpoint was trained on 4x4.*resize=True"),
    ],
)
def test_wrong_frames_are_refused_in_one_line(frame, word):
    with pytest.raises(InputError, match=word) as caught:
        controller().act(frame, pixels([5, 5]))
    assert "\n" not in str(caught.value)


def test_wrong_goals_and_proprioception_are_refused():
    robot = controller(World(proprio=3))
    for given, word in (
        ((pixels([1, 2]), pixels([[1, 2]])), "goal is uint8 .1, 4, 4, 3."),
        ((pixels([[1, 2], [1, 2]]), pixels([[1, 2]])), r"of \[1, 2\] robots"),
        ((pixels([1, 2]), pixels([1, 2]), np.zeros(2)), r"proprio is \[2\]: expected \[3\]"),
        ((pixels([[1, 2]]), pixels([[1, 2]]), np.zeros(3)), r"proprio is \[3\]: expected \[B,3\]"),
        ((pixels([1, 2]), pixels([1, 2]), None, np.zeros((2, 3))), "goal_proprio is"),
    ):
        with pytest.raises(InputError, match=word):
            robot.act(*given)


def test_proprioception_reaches_the_world_beside_its_frame():
    world = World(proprio=3)
    controller(world).act(pixels([1, 2]), pixels([5, 5]), np.arange(3), np.arange(3) + 4)
    assert [part.tolist() for part in world.felt] == [[[[0, 1, 2]]], [[[4, 5, 6]]]]


def test_frames_are_resized_where_that_is_asked_for():
    large = controller(resize=True).act(pixels([50, 60], side=16), pixels([90, 20], side=8))
    assert np.array_equal(large, controller().act(pixels([50, 60]), pixels([90, 20])))


def test_a_budget_counts_the_looking_and_cuts_the_search(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(deadline, "perf_counter", lambda: now[0])

    class Slow(World):
        def encode(self, sample):
            now[0] += 1
            return super().encode(sample)

        def rollout(self, z, action, past=None):
            now[0] += 1
            return super().rollout(z, action, past)

    world, searches = Slow(), []
    # a plan that was cut has no elites to keep: the first decision is cut in time, the later ones by and by
    robot = controller(world, ICEM(), budget=3.5)
    for place in ([0, 0], [5, 5], [9, 9]):
        before = len(world.contexts)
        action = robot.act(pixels(place), pixels([99, 99]))
        assert np.abs(action).max() <= 1 and action.min() > 0.2, "the best of what was seen goes to the goal"
        searches.append(len(world.contexts) - before)
        robot.limit.seconds = 1000 if len(searches) == 1 else 0.5
    assert searches[0] == 2 and searches[1] > 2 and searches[2] == 1


class Episode:
    """A recorded one: the place moves by ten times the action."""

    def __init__(self, steps=9):
        self.action = torch.rand(steps, 2, generator=torch.Generator().manual_seed(0)).round(decimals=1)
        place = (20 + 10 * torch.cat([torch.zeros(1, 2), self.action[:-1].cumsum(0)])).round()
        video = torch.from_numpy(pixels(place.numpy())).permute(0, 3, 1, 2)
        self.sample = Sample(video=video, action=self.action)


def test_a_replay_plans_from_the_recorded_past_and_sees_the_goal_alone():
    world, episode = World(block=2, history=2), Episode()
    robot = controller(world, Scripted(), execute=1)
    told = list(robot.replay(episode.sample))
    assert [one.step for one in told] == list(range(8))
    assert [one.planned for one in told] == [True, False] * 4 and all(one.seconds > 0 for one in told)
    assert np.array_equal([one.recorded for one in told], episode.action[:-1].numpy())
    assert [one.action[0] for one in told] == pytest.approx([0, 0.01] * 4)
    _, past = world.contexts[-1]
    assert past == [pytest.approx(episode.action[4:6].flatten().tolist())]
    changed = replace(episode.sample, video=episode.sample.video.clone(), action=episode.action.clone())
    changed.video[5:-1], changed.action[5:] = 7, 0.3
    again = list(robot.replay(changed))  # a replay begins as if nothing had been
    assert [one.action.tolist() for one in again[:5]] == [one.action.tolist() for one in told[:5]]


def test_a_replay_of_what_the_policy_did_is_what_it_did():
    robot, place, frames, actions = controller(World(history=2), execute=1), np.array([20.0, 90.0]), [], []
    for _ in range(6):
        frames.append(pixels(place.round()))
        actions.append(robot.act(frames[-1], pixels([90, 30])))
        place = place + 10 * actions[-1]
    frames.append(pixels([90, 30]))
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    told = list(robot.replay(Sample(video=video, action=torch.from_numpy(np.stack(actions)))))
    assert np.allclose([one.action for one in told], actions, atol=1e-6)
    assert all(np.array_equal(one.action, one.recorded) for one in told)


def test_a_replay_wants_an_episode_and_a_frame_of_it():
    robot, episode = controller(), Episode().sample
    with pytest.raises(InputError, match="lacks its video or its actions"):
        list(robot.replay(replace(episode, action=None)))
    with pytest.raises(InputError, match="goal=9: expected a frame"):
        list(robot.replay(episode, goal=9))


def test_the_pose_world_is_driven_with_its_proprioception():
    torch.manual_seed(0)
    space = ActionSpec((-0.1,) * 7, (0.1,) * 7, (0.0,) * 7, (0.05,) * 7)
    seen = ObservationSpec(16, 16, proprio_mean=(0.2,) * 7, proprio_std=(2.0,) * 7)
    world = PoseWorld(StillViT(16, 2, 2, 8, 12, 1, 2, 2.0), PosePredictor(12, 16, 2, 2, (2, 2), 2.0), Frozen())
    world.bind(Specs(space, seen, EvalSpec(history=2)))
    for parameter in world.predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    asked, rollout = [], world.rollout

    def spy(z, action, past=None, proprio=None):
        asked.append(proprio)
        return rollout(z, action, past, proprio)

    world.rollout = spy
    random = np.random.default_rng(0)
    video = random.integers(256, size=(5, 16, 16, 3), dtype=np.uint8)
    action = torch.from_numpy(random.uniform(-0.1, 0.1, (5, 7)).astype("f4"))
    pose = reckon(torch.rand(7), action)
    robot = controller(world, CEM(64, 4, 3, 3), horizon=2)
    done = [robot.act(video[t], video[-1], pose[t].numpy()) for t in range(2)]
    assert np.isfinite(done).all() and np.abs(done).max() <= 0.1 and np.abs(done[0] - done[1]).max() > 0
    assert torch.equal(asked[0], pose[None, :1]) and torch.equal(asked[-1], pose[None, :2])
    # the pose is looked at: another one, another plan
    robot.reset()
    assert not np.array_equal(robot.act(video[0], video[-1], pose[0].numpy() + 1), done[0])
    robot.reset()
    with pytest.raises(InputError, match="no proprio"):
        robot.act(video[0], video[-1])
    whole = Sample(video=torch.from_numpy(video).permute(0, 3, 1, 2), action=action, proprio=pose)
    assert np.allclose(next(robot.replay(whole)).action, done[0], atol=1e-6)
