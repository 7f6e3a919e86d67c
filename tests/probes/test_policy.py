from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from probes.policy import BehaviourCloning, GoalCloning, InverseDynamicsProbe, cluster
from probes.task import probe


def test_inverse_dynamics_beats_the_mean_action_and_knows_the_known_sum(cache_path, tmp_path):
    report = probe(cache_path, InverseDynamicsProbe(hidden=32), "action", tmp_path / "r", epochs=60, batch=64,
                   lr=[1e-2], accelerator="cpu")  # fmt: skip
    # Two actions of a block shift the position by their sum, so half of the variance of each can be known.
    assert 0.3 < report["r2"] < 0.55
    assert report["error"] < 0.7 * report["error_of_mean"]


@pytest.mark.parametrize(
    ("kind", "steps", "wants"), [(GoalCloning, 1, "pairs"), (BehaviourCloning, 2, "single latents")]
)
def test_each_reads_its_own_windows_only(kind, steps, wants):
    with pytest.raises(InputError, match=f"windows of {steps} latents: expected {wants}"):
        kind().build(torch.zeros(4, steps, 2, 3), torch.zeros(4, 2))


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="modes=-1"):
        GoalCloning(modes=-1)
    with pytest.raises(InputError, match="modes=8 among 4 training examples"):
        GoalCloning(modes=8).build(torch.randn(4, 2, 2, 3), torch.randn(4, 2))


def test_where_the_data_does_one_of_two_things_modes_do_one_and_least_squares_does_neither():
    """Left or right at random past an obstacle: the mean runs into it."""
    torch.manual_seed(0)
    z = torch.randn(512, 2, 1, 3)
    y = torch.where(torch.rand(512, 1) < 0.5, -1.0, 1.0) + 0.05 * torch.randn(512, 1)
    taken = {}
    for modes in (0, 2):
        policy = GoalCloning(hidden=16, modes=modes)
        policy.build(z, y)
        optimiser = torch.optim.Adam(policy.parameters(), 1e-2)
        for _ in range(60):
            optimiser.zero_grad()
            policy.loss(policy(z), y).backward()
            optimiser.step()
        taken[modes] = policy.act(z[:, :1], z[:, 1:]).abs().detach()
        # what is scored is the mean either way
        assert policy.answer(policy(z)).mean().abs() < 0.2 and policy.answer(policy(z)).shape == y.shape
    assert taken[0].median() < 0.5 and taken[2].median() == pytest.approx(1, abs=0.1)


def test_modes_without_offsets_are_clusters_of_the_actions():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    y = centres.repeat(50, 1) + 0.1 * torch.randn(150, 2)
    for count in (1, 3):
        found = cluster(y, count)
        assert found.shape == (count, 2) and found.isfinite().all()
    assert torch.cdist(y, cluster(y, 30)).min(1).values.max() < torch.cdist(y, centres).min(1).values.max()
    assert torch.equal(cluster(torch.zeros(9, 2), 4), torch.zeros(4, 2))


def test_many_heads_at_once_have_the_losses_of_each():
    torch.manual_seed(0)
    z, y = torch.randn(32, 2, 2, 3), torch.randn(32, 4)
    heads = []
    for _ in range(3):
        heads.append(GoalCloning(hidden=8, modes=4))
        torch.manual_seed(1)
        heads[-1].build(z, y)
        torch.nn.init.normal_(heads[-1].head[0].weight, generator=torch.Generator().manual_seed(len(heads)))
    weights = {name: torch.stack([dict(head.named_parameters())[name] for head in heads]) for name, _ in
               heads[0].named_parameters()}  # fmt: skip
    losses = heads[0].losses(heads[0].together(weights, z), y)
    assert torch.allclose(losses, torch.stack([head.loss(head(z), y) for head in heads]), atol=1e-5)


def test_inverse_dynamics_aims_one_step_ahead_and_at_a_near_goal_itself():
    torch.manual_seed(0)
    z = torch.randn(256, 1, 2, 3)
    pairs = torch.cat([z, z + 0.1 * torch.randn(256, 1, 2, 3)], dim=1)
    policy = InverseDynamicsProbe(hidden=8)
    policy.build(pairs, torch.randn(256, 2))
    near, far = z + 1e-3, z + 10 * torch.randn(256, 1, 2, 3)
    assert torch.allclose(policy.aim(z, near), torch.cat([z, near], dim=1))
    aimed = policy.aim(z, far)
    along = (aimed[:, 1] - z[:, 0]).flatten(1), (far - z).flatten(1)
    assert torch.allclose(torch.cosine_similarity(*along), torch.ones(256), atol=1e-4)
    moved = (policy.features((z[:, 0]).mean(1)) - policy.features(aimed[:, 1].mean(1))).norm(dim=1)
    assert torch.allclose(moved, policy.step.expand(256), rtol=1e-3)


def test_cloning_without_goals_takes_no_notice_of_one():
    torch.manual_seed(0)
    policy = BehaviourCloning(hidden=8, modes=2)
    policy.build(torch.randn(16, 1, 2, 3), torch.randn(16, 2))
    z = torch.randn(4, 1, 2, 3)
    assert torch.equal(policy.act(z, torch.randn(4, 1, 2, 3)), policy.act(z, torch.randn(4, 1, 2, 3)))
