"""Costs against closed forms."""

import pytest
import torch

from jepa.errors import InputError
from jepa.planning import ActionPenalty, GoalLatent, WeightedSum


@pytest.fixture
def futures():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 5, 6, generator=generator)
    return z, torch.randn(2, 5, 6, generator=generator), torch.randn(2, 3, 4, 2, generator=generator)


def test_last_l2_is_the_mean_squared_error_of_the_last_step(futures):
    z, goal, action = futures
    expected = torch.stack([(z[b, :, -1] - goal[b]).square().mean((1, 2)) for b in range(2)])
    assert torch.allclose(GoalLatent()(z, goal, action), expected)


def test_a_goal_may_have_a_time_axis(futures):
    z, goal, action = futures
    assert torch.equal(GoalLatent("l1")(z, goal, action), GoalLatent("l1")(z, goal.unsqueeze(1), action))


@pytest.mark.parametrize("norm", ["l2", "l1", "cosine"])
def test_reductions_agree_with_sums_of_single_steps(futures, norm):
    z, goal, action = futures
    steps = [GoalLatent(norm)(z[:, :, : h + 1], goal, action) for h in range(4)]
    summed = GoalLatent(norm, "sum", last_weight=3.0)(z, goal, action)
    assert torch.allclose(summed, steps[0] + steps[1] + steps[2] + 3 * steps[3], atol=1e-6)
    discounted = GoalLatent(norm, "discounted", discount=0.5)(z, goal, action)
    assert torch.allclose(discounted, steps[0] + steps[1] / 2 + steps[2] / 4 + steps[3] / 8, atol=1e-6)


def test_cosine_is_zero_for_equal_direction_and_two_for_opposite():
    goal = torch.tensor([[[3.0, 4.0]]])
    z = torch.stack([2 * goal, -goal], dim=1).unsqueeze(2)
    assert torch.allclose(GoalLatent("cosine")(z, goal, None), torch.tensor([[0.0, 2.0]]), atol=1e-6)


def test_costs_add_and_scale(futures):
    a, b = GoalLatent(), ActionPenalty()
    expected = 2 * a(*futures) + 0.5 * b(*futures)
    assert torch.allclose((2 * a + b * 0.5)(*futures), expected)
    assert torch.allclose(WeightedSum([a, b], [2, 0.5])(*futures), expected)


def test_penalties(futures):
    z, goal, action = futures
    assert torch.allclose(ActionPenalty()(z, goal, action), action.square().mean((2, 3)))
    constant = action[:, :, :1].expand(-1, -1, 4, -1)
    assert ActionPenalty(smooth=True)(z, goal, constant).abs().max() == 0
    assert ActionPenalty(smooth=True)(z, goal, action[:, :, :1]).shape == (2, 3)


@pytest.mark.parametrize("make", [lambda: GoalLatent("l3"), lambda: GoalLatent(reduce="all"), lambda: WeightedSum([])])
def test_wrong_arguments_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_channels_weigh_the_parts_of_a_latent(futures):
    z, goal, action = futures
    part = GoalLatent(channels=(4, 6), reduce="sum")(z, goal, action)
    assert torch.allclose(part, GoalLatent(reduce="sum")(z[..., 4:], goal[..., 4:], action))
    with pytest.raises(InputError, match="latents have 6 channels"):
        GoalLatent(channels=(4, 7))(z, goal, action)
    with pytest.raises(InputError, match="first < end"):
        GoalLatent(channels=(4, 4))
