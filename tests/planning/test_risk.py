"""Costs over an ensemble: closed forms, and plans that know what the members disagree on."""

import math

import pytest
import torch

from jepa.checkpoints import load
from jepa.checkpoints.load import describe
from jepa.errors import InputError
from jepa.models.encoders import ConvNet
from jepa.models.ensemble import EnsembleWorld
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import Online
from jepa.planning import CEM, MPC, ActionPenalty, Disagreement, GoalLatent, Risk, WeightedSum
from jepa.planning.risk import tail_mean
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Sample, Specs


@pytest.fixture
def futures():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(5, 2, 3, 4, 1, 6, generator=draw)  # [E,B,S,H,N,D]
    return z, torch.randn(2, 1, 6, generator=draw), torch.randn(2, 3, 4, 2, generator=draw)


def test_the_functionals_have_their_closed_forms(futures):
    z, goal, action = futures
    each = torch.stack([GoalLatent()(member, goal, action) for member in z])
    ranked = each.sort(dim=0, descending=True).values
    assert torch.allclose(Risk(GoalLatent(), "mean")(*futures), each.mean(0))
    assert torch.equal(Risk(GoalLatent(), "worst")(*futures), ranked[0])
    assert torch.allclose(Risk(GoalLatent(), "cvar", tail=0.4)(*futures), ranked[:2].mean(0))
    part = Risk(GoalLatent(), "cvar", tail=0.5)(*futures)  # two members and half of the third
    assert torch.allclose(part, (ranked[0] + ranked[1] + 0.5 * ranked[2]) / 2.5)


def test_cvar_runs_from_the_worst_to_the_mean():
    cost = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tail_mean(cost, 1e-6), cost.amax(0)) and torch.allclose(tail_mean(cost, 1.0), cost.mean(0))
    tails = torch.stack([tail_mean(cost, tail / 20) for tail in range(1, 21)])
    assert (tails.diff(dim=0) <= 1e-6).all()
    assert tail_mean(torch.tensor([[1.0], [math.inf]]), 0.5).isinf().all()
    assert tail_mean(torch.tensor([[-math.inf], [2.0]]), 0.5).item() == 2, "a share of zero of infinity is nothing"


def test_disagreement_is_the_variance_over_members(futures):
    z, goal, action = futures
    variance = z.var(0, correction=0).mean((-2, -1))
    assert torch.allclose(Disagreement()(*futures), variance.sum(-1))
    assert torch.allclose(Disagreement("last")(*futures), variance[..., -1])
    expected = variance @ 0.5 ** torch.arange(4.0)
    assert torch.allclose(Disagreement("discounted", discount=0.5)(*futures), expected)
    assert torch.allclose(Disagreement(root=True)(*futures), z.std(0, correction=0).mean((-2, -1)).sum(-1), atol=1e-5)
    same = z[:1].expand_as(z).clone().requires_grad_()
    assert Disagreement()(same, goal, action).abs().max() < 1e-12
    (slope,) = torch.autograd.grad(Disagreement(root=True)(same, goal, action).sum(), same)
    assert slope.isfinite().all()


def test_other_terms_of_a_sum_are_averaged_over_members(futures):
    z, goal, action = futures
    cost = GoalLatent() + 2.0 * Disagreement() + ActionPenalty()
    assert cost.members
    expected = Risk(GoalLatent())(*futures) + 2 * Disagreement()(*futures) + ActionPenalty()(z[0], goal, action)
    assert torch.allclose(cost(*futures), expected, atol=1e-6)
    assert not (GoalLatent() + ActionPenalty()).members and WeightedSum([Risk(GoalLatent())]).members


def test_wrong_use_is_refused_in_one_line(futures):
    z, goal, action = futures
    wrong = [
        lambda: Risk(GoalLatent(), "median"),
        lambda: Risk(GoalLatent(), "cvar", tail=0.0),
        lambda: Risk(Disagreement()),
        lambda: Risk(GoalLatent())(z[0], goal, action),
        lambda: Disagreement("mean"),
        lambda: Disagreement()(z[0], goal, action),
    ]
    for make in wrong:
        with pytest.raises(InputError) as caught:
            make()
        assert "\n" not in str(caught.value)


class Doubtful:
    """Positions in the plane; the members agree on slow moves only, and one of them stands still when it is fast."""

    specs = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (0.5,) * 2), ObservationSpec(4, 4), EvalSpec())

    def encode(self, sample):
        return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10

    def rollout(self, z, action, past=None):
        return self.rollouts(z, action, past).mean(0)

    def rollouts(self, z, action, past=None):
        slow = action.clamp(-0.2, 0.2)
        return torch.stack([(z[:, -1:] + moves.cumsum(2)).unsqueeze(3) for moves in (action, action, slow)])


def test_a_plan_that_shuns_disagreement_stays_where_the_members_agree():
    goal = Sample(video=torch.full((1, 1, 3, 4, 4), 30, dtype=torch.uint8))
    present = Sample(video=torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), goal=goal)
    bold = MPC(Doubtful(), CEM(), GoalLatent(), 3).act(present)
    careful = MPC(Doubtful(), CEM(min_std=0.02), GoalLatent() + 100.0 * Disagreement(), 3).act(present)
    assert (bold > 0.5).all() and (careful > 0.1).all() and (careful < 0.35).all()
    worst = MPC(Doubtful(), CEM(), Risk(GoalLatent(), "worst"), 3, chunk=7).act(present)
    assert (worst >= 0.2).all()


def test_a_world_alone_cannot_serve_a_cost_over_members():
    class Alone:
        specs, encode, rollout = Doubtful.specs, Doubtful.encode, Doubtful.rollout

    with pytest.raises(InputError, match="EnsembleWorld"):
        MPC(Alone(), CEM(), GoalLatent() + Disagreement(), 3)


def world(count=3, seed=0):
    torch.manual_seed(seed)
    members = [ActionPredictor(dim=8, width=16, depth=1, heads=2, window=3) for _ in range(count)]
    made = EnsembleWorld(ConvNet(dim=8, size=32), members, Online(), rollout_steps=2)
    made.bind(Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.1,) * 2, (0.5,) * 2), ObservationSpec(32, 32), EvalSpec()))
    for parameter in made.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return made


def batch(rows=6, frames=5):
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 255, (rows, frames, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return Sample(video=video, action=torch.randn(rows, frames - 1, 2, generator=draw))


def test_every_member_rolls_on_its_own_forecasts():
    made = world().eval()
    sample = batch()
    with torch.no_grad():
        z = made.encode(sample)[:, :2]
        past, plans = sample.action[:, :1], torch.randn(6, 4, 3, 2)
        each = made.rollouts(z, plans, past)
        assert each.shape == (3, 6, 4, 3, 1, 8) and (each[0] - each[1]).abs().max() > 1e-3
        assert torch.allclose(made.rollout(z, plans, past), each.mean(0))
        for index, member in enumerate(made.members):
            frames, done = z, past
            for h in range(3):
                done = torch.cat([done, plans[:, 2, h : h + 1]], 1)
                step = member(frames, made.specs.action.normalise(done))[:, -1:]
                assert torch.allclose(step[:, 0], each[index, :, 2, h], atol=1e-5)
                frames = torch.cat([frames, step], 1)
        assert torch.allclose(made.rollouts(z[:, :1], plans), made.rollouts(z[:, :1], plans, past[:, :0]))


def test_in_training_every_row_goes_to_one_member():
    made, sample = world().train(), batch(7)
    prediction = made(sample)
    assert prediction.p.shape == (7, 4, 1, 8) and prediction.rollout.shape == (7, 2, 1, 8)
    for index, rows in enumerate(made._rows(7)):
        made.zero_grad(set_to_none=True)
        (made(sample).p[rows] * torch.linspace(-1, 2, 8)).sum().backward()
        reached = [bool(member.project.weight.grad.abs().sum() > 0) for member in made.members]
        assert reached == [other == index for other in range(3)]
    assert [len(range(*rows.indices(7))) for rows in made._rows(7)] == [2, 2, 3]
    z, plans = torch.randn(7, 1, 1, 8), torch.randn(7, 2, 3, 2)
    mine, each = made.rollout(z, plans), made.eval().rollouts(z, plans)
    for index, rows in enumerate(made._rows(7)):
        assert torch.allclose(mine[rows], each[index, rows], atol=1e-6), "each row by its own member"
    made.train()
    with pytest.raises(InputError, match="cannot train 3 members"):
        made(batch(2))


def test_members_must_be_distinct_and_alike():
    one, other = ActionPredictor(dim=8, width=16, heads=2), ActionPredictor(dim=6, width=16, heads=2)
    for members, word in (([one], "two or more"), ([one, one], "two or more"), ([one, other], "different")):
        with pytest.raises(InputError, match=word):
            EnsembleWorld(ConvNet(dim=8, size=32), members, Online())


def test_a_checkpoint_rebuilds_an_ensemble(tmp_path):
    made = world()
    part = {"class_path": "jepa.models.predictors.ActionPredictor"}
    part["init_args"] = {"dim": 8, "width": 16, "depth": 1, "heads": 2, "window": 3}
    tree = {
        "class_path": "jepa.models.ensemble.EnsembleWorld",
        "init_args": {
            "encoder": {"class_path": "jepa.models.encoders.ConvNet", "init_args": {"dim": 8, "size": 32}},
            "members": [part, part, part],
            "target": {"class_path": "jepa.models.targets.Online"},
            "rollout_steps": 2,
        },
    }
    state = {f"world.{name}": value for name, value in made.state_dict().items()}
    torch.save({"jepa": describe(made, tree), "state_dict": state}, tmp_path / "last.ckpt")
    again = load(str(tmp_path / "last.ckpt"))
    z, plans = torch.randn(2, 1, 1, 8), torch.randn(2, 3, 4, 2)
    with torch.no_grad():
        assert torch.equal(again.rollouts(z, plans), made.eval().rollouts(z, plans))
