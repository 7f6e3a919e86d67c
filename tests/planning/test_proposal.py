"""The learned proposal: it learns inverse dynamics, keeps its file, and shortens the search of any planner."""

import pytest
import torch

from jepa.errors import InputError
from jepa.models.proposal import GoalProposal, fit_proposal, load_proposal, windows
from jepa.planning import CEM, ICEM, MPC, CategoricalCEM, Collocation, GoalLatent, GradientPlanner, TreeSearch
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Proposal, Sample, Specs

SPACE = ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.1, -0.1), (0.5, 0.4))


def straight(episodes=120, length=9, space=SPACE, seed=0):
    """Walks along straight lines: the latent is the position, so goal, reach and actions determine each other."""
    draw = torch.Generator().manual_seed(seed)
    actions = space.clip(space.denormalise(torch.randn(episodes, 1, space.width, generator=draw)))
    actions = actions.expand(-1, length - 1, -1)
    moves = actions.unflatten(-1, (-1, 2)).sum(-2).cumsum(1)
    start = torch.randn(episodes, 1, 2, generator=draw)
    path = torch.cat([start, start + moves], 1).unsqueeze(2)
    return list(path), list(actions)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    proposal = GoalProposal(SPACE, dim=2, horizon=3, reach=(2, 4), width=64)
    losses = fit_proposal(proposal, *straight(), steps=400, batch=128, lr=3e-3)
    return proposal, losses


def test_it_learns_which_actions_lead_to_the_goal(fitted):
    proposal, losses = fitted
    assert losses[0] > 0.5 and sum(losses[-50:]) / 50 < 0.05
    assert isinstance(proposal, Proposal)
    paths, actions = (torch.stack(part) for part in straight(20, seed=1))
    for index, far in enumerate((2, 4)):
        plans = proposal.propose(paths[:, 0], paths[:, far], 3)
        assert plans.shape == (20, 2, 3, 2)
        assert (plans[:, index] - actions[:, :3]).abs().mean() < 0.1, "the right reach gives what was done"
    assert (plans[:, 0] - actions[:, :3]).abs().mean() > 0.15, "the wrong one does not"


def test_plans_keep_to_the_bounds_and_to_the_horizon(fitted):
    proposal, _ = fitted
    far = proposal.propose(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 50.0), 5)
    assert (far.abs() <= 1).all() and far.shape == (1, 2, 5, 2)
    assert torch.allclose(far[:, :, 3:], torch.tensor(SPACE.mean).expand(1, 2, 2, 2)), "beyond, the mean action"
    assert proposal.propose(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), 1).shape == (1, 2, 1, 2)


def test_choices_are_proposed_as_choices():
    space = ActionSpec((0.0,) * 3, (1.0,) * 3, (0.3,) * 3, (0.5,) * 3, block=2, choices=3)
    plans = GoalProposal(space, 4, horizon=2, width=8).propose(torch.randn(3, 5, 4), torch.randn(3, 5, 4), 3)
    each = plans.unflatten(-1, (2, 3))
    assert ((each == 0) | (each == 1)).all() and (each.sum(-1) == 1).all()


def test_windows_lie_within_their_episode():
    found = windows([5, 3, 9], horizon=2, reach=(1, 4))
    assert set(found) == {
        *((0, start, 0) for start in range(3)),
        (0, 0, 1),
        (1, 0, 0),
        *((2, start, 0) for start in range(7)),
        *((2, start, 1) for start in range(5)),
    }


def test_it_is_kept_in_a_file_that_runs_nothing(fitted, tmp_path):
    proposal, _ = fitted
    proposal.save(tmp_path / "guess.safetensors")
    again = load_proposal(str(tmp_path / "guess.safetensors"))
    z, goal = torch.randn(4, 1, 2), torch.randn(4, 1, 2)
    assert torch.equal(again.propose(z, goal, 3), proposal.propose(z, goal, 3)) and again.space == SPACE
    losses = fit_proposal(again, *straight(8), steps=2, batch=8)
    assert len(losses) == 2 and not torch.equal(again.propose(z, goal, 3), proposal.propose(z, goal, 3)), "it goes on"
    with pytest.raises(InputError, match="no GoalProposal at"):
        load_proposal(str(tmp_path / "missing.safetensors"))
    from jepa.models.heads import Head

    Head(2).save(tmp_path / "head.safetensors")
    with pytest.raises(InputError, match="holds Head, not a GoalProposal"):
        load_proposal(str(tmp_path / "head.safetensors"))


class World:
    """The latent is the position in tens of a flat-coloured frame, from its middle; actions add up."""

    specs = Specs(SPACE, ObservationSpec(4, 4), EvalSpec())

    def __init__(self):
        self.asked = []

    def encode(self, sample):
        return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10 - 10

    def rollout(self, z, action, past=None):
        self.asked.append(action.detach().clone())
        return (z[:, -1:] + action.cumsum(2)).unsqueeze(3)

    def predict(self, z, action):
        return z + action.unsqueeze(2)


def present(goals):
    video = torch.full((len(goals), 1, 3, 4, 4), 100, dtype=torch.uint8)
    goal = video.clone()
    goal[:, 0, :2] = torch.tensor(goals, dtype=torch.uint8)[:, :, None, None]
    return Sample(video=video, goal=Sample(video=goal))


PLANNERS = [CEM(), ICEM(), GradientPlanner(), Collocation(), CategoricalCEM(levels=5), TreeSearch(levels=5)]


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_any_planner_starts_from_it_and_never_ends_behind_it(fitted, planner):
    world, proposal = World(), fitted[0]
    policy, plans = MPC(world, planner, GoalLatent(), 3, proposal=proposal), []
    keep = policy._keep
    policy._keep = lambda plan, rows: plans.append(plan) or keep(plan, rows)
    sample = present([[112, 95], [90, 104]])
    policy.act(sample)
    guess = proposal.propose(policy._z[:, -1], policy._goal_z[:, 0], 3)
    if planner not in PLANNERS[-2:]:  # those of choices round it to their menu
        tried = torch.stack(
            [(world.asked[0] - guess[:, w : w + 1]).abs().amax((2, 3)).amin(1) for w in range(guess.shape[1])]
        )
        assert (tried < 1e-5).all(), "every proposed plan is among the first candidates"
        costs = GoalLatent()(world.rollout(policy._z, guess), policy._goal_z, guess)
        best = costs.amin(1) if not isinstance(planner, CEM) or isinstance(planner, ICEM) else costs.amax(1)
        assert (plans[0].cost <= best + 1e-4).all()
    policy.act(sample)
    assert len(plans) == 2, "a warm start and the proposals stand side by side"


def test_one_iteration_from_a_proposal_beats_one_from_nothing(fitted):
    sample = present([[114, 90], [88, 106], [104, 112]])
    costs = []
    for proposal in (fitted[0], None):
        policy, plans = MPC(World(), ICEM(16, 4, 1, 1, keep=2), GoalLatent(), 2, proposal=proposal), []
        keep = policy._keep
        policy._keep = lambda plan, rows, keep=keep, plans=plans: plans.append(plan) or keep(plan, rows)
        policy.act(sample)
        costs.append(plans[0].cost)
    assert costs[0].mean() < 0.5 * costs[1].mean(), (costs[0].tolist(), costs[1].tolist())


@pytest.mark.parametrize(
    "make",
    [
        lambda: GoalProposal(SPACE, 0),
        lambda: GoalProposal(SPACE, 4, reach=(2, 2)),
        lambda: GoalProposal(SPACE, 4, reach=()),
        lambda: GoalProposal(SPACE, 4).propose(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), 2),
        lambda: GoalProposal(SPACE, 4, tokens=2).propose(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), 2),
        lambda: fit_proposal(GoalProposal(SPACE, 2), *straight(3, length=5)),
        lambda: fit_proposal(GoalProposal(SPACE, 2), [], []),
        lambda: fit_proposal(GoalProposal(SPACE, 2), [torch.zeros(30, 1, 2)], [torch.zeros(30, 2)]),
        lambda: fit_proposal(GoalProposal(SPACE, 2), [torch.zeros(30, 1, 2)], [torch.full((29, 2), torch.nan)]),
    ],
)
def test_wrong_input_is_refused_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
