from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.schema import Policy, Sample
from probes.policy import BehaviourCloning, ClonedPolicy, InverseDynamicsProbe
from probes.task import probe


def test_inverse_dynamics_beats_the_mean_action_and_knows_the_known_sum(cache_path, tmp_path):
    report = probe(cache_path, InverseDynamicsProbe(hidden=32), "action", tmp_path / "r", epochs=60, batch=64,
                   lr=[1e-2], accelerator="cpu")  # fmt: skip
    # Two actions of a block shift the position by their sum, so half of the variance of each can be known.
    assert 0.3 < report["r2"] < 0.55
    assert report["error"] < 0.7 * report["error_of_mean"]


def test_cloning_reads_pairs_only():
    with pytest.raises(InputError, match="windows of 1 latents: expected pairs"):
        BehaviourCloning().build(torch.zeros(4, 1, 2, 3), torch.zeros(4, 2))


class FixedBlock(BehaviourCloning):
    """Answers the mean latents' first numbers as a block of two 2-D actions."""

    def forward(self, z):
        return z[:, 0].mean(1)


def sample(world, values):
    video = torch.tensor(values, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 1, 3, 2, 2)
    return Sample(video=video, state=torch.zeros(len(values), 1, 3), goal=Sample(video=video))


def policy_of(world):
    cloned = FixedBlock()
    cloned.build(torch.zeros(4, 2, 2, 4), torch.zeros(4, 4))
    return ClonedPolicy(world, cloned)


def test_a_block_is_acted_out_before_the_next_is_asked_for(world):
    policy = policy_of(world)
    assert isinstance(policy, Policy)
    first, other = sample(world, [100, 129]), sample(world, [150, 131])
    block = world.encode(Sample(video=first.video))[:, 0].mean(1).clamp(-1, 1).unflatten(1, (2, 2))
    assert torch.allclose(policy.act(first), block[:, 0])
    assert torch.allclose(policy.act(other), block[:, 1])
    later = world.encode(Sample(video=other.video))[:, 0].mean(1).clamp(-1, 1).unflatten(1, (2, 2))
    assert torch.allclose(policy.act(other), later[:, 0])


def test_reset_forgets_only_the_environments_that_are_done(world):
    policy, first, other = policy_of(world), sample(world, [100, 129]), sample(world, [150, 131])
    policy.act(first)
    policy.reset(torch.tensor([True, False]))
    world.seen.clear()
    action = policy.act(other)
    assert world.seen == [1, 1]  # one present and one goal, for the environment that was reset
    new = world.encode(Sample(video=other.video))[:, 0].mean(1).clamp(-1, 1)
    old = world.encode(Sample(video=first.video))[:, 0].mean(1).clamp(-1, 1)
    assert torch.allclose(action[0], new[0, :2]) and torch.allclose(action[1], old[1, 2:])


def test_a_probe_of_another_width_is_refused(world):
    cloned = BehaviourCloning()
    cloned.build(torch.zeros(4, 2, 2, 4), torch.zeros(4, 3))
    with pytest.raises(InputError, match="answers 3 numbers, the world's actions have 4"):
        ClonedPolicy(world, cloned)
