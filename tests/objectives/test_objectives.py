"""Closed forms, ramps and refusals of the objectives."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.objectives import Covariance, InverseDynamics, Regression, TemporalSimilarity, Variance
from jepa.schema import ActionSpec, ObservationSpec, Prediction, Specs

B, T, N, D, A = 6, 5, 3, 4, 2


def predict(**given) -> Prediction:
    torch.manual_seed(0)
    z = torch.randn(B, T, N, D)
    return Prediction(**{"z": z, "h": z, "action": torch.randn(B, T - 1, A), **given})


def test_forced_regression_compares_with_the_next_step():
    h = predict().h
    assert Regression(source="forced")(predict(p=h[:, 1:])) == 0
    assert Regression(source="forced")(predict(p=h[:, :-1])) > 0.1


def test_rollout_regression_compares_with_the_last_steps():
    h = predict().h
    assert Regression(source="rollout")(predict(rollout=h[:, -2:])) == 0
    assert Regression(source="rollout")(predict(rollout=h[:, :2])) > 0.1


@pytest.mark.parametrize(
    ("norm", "expected"), [("l2", 4.0), ("l1", 2.0), ("smooth_l1", 1.5), ("cosine", 0.0)], ids=lambda value: str(value)
)
def test_norms_of_a_known_difference(norm, expected):
    h = torch.ones(B, T, N, D)
    given = predict(h=h, p=h[:, 1:] + 2)
    assert Regression(norm=norm)(given).item() == pytest.approx(expected, abs=1e-6)


def test_decay_is_a_weighted_mean_over_rollout_steps():
    h = torch.zeros(B, T, N, D)
    rollout = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(B, 3, N, D)
    value = Regression(source="rollout", decay=0.5)(predict(h=h, rollout=rollout))
    assert value.item() == pytest.approx((1 + 0.5 * 4 + 0.25 * 9) / 1.75)


@pytest.mark.parametrize(("source", "argument"), [("forced", "forced=true"), ("rollout", "rollout_steps")])
def test_a_missing_forecast_names_the_argument_to_set(source, argument):
    with pytest.raises(InputError, match=argument):
        Regression(source=source)(predict())


def test_variance_hinge_of_a_known_spread():
    z = torch.tensor([-0.5, 0.5]).repeat(B // 2).view(B, 1, 1, 1).expand(B, T, N, D)
    std = (0.25 * B / (B - 1) + 1e-4) ** 0.5
    assert Variance(over="step")(predict(z=z[:, :, :1])).item() == pytest.approx(1 - std, abs=1e-6)
    assert Variance(margin=0.4)(predict(z=z)) == 0


def test_variance_over_time_sees_through_a_background():
    background = predict(z=10 * torch.randn(B, 1, N, D).expand(B, T, N, D))
    assert Variance(over="batch")(background) == 0
    assert Variance(over="step")(background) < 0.1
    assert Variance(over="time")(background).item() == pytest.approx(1 - 1e-2, abs=1e-5)


def test_variance_gradient_is_finite_at_a_point():
    z = torch.ones(B, T, N, D, requires_grad=True)
    Variance()(predict(z=z)).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("over", ["batch", "step"])
def test_covariance_agrees_with_torch(over):
    z = predict().z
    groups = [z.flatten(0, 2)] if over == "batch" else [z[:, t].flatten(0, 1) for t in range(T)]
    expected = torch.stack([(x.T.cov() - x.T.cov().diag().diag()).square().sum() for x in groups]).mean()
    assert Covariance(over=over)(predict()).item() == pytest.approx(expected.item() / D, rel=1e-5)
    assert Covariance(per="pair", over=over)(predict()).item() == pytest.approx(expected.item() / D / 3, rel=1e-5)


def test_covariance_stays_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Covariance()(predict())
    assert value.dtype == torch.float32 and value.item() == Covariance()(predict()).item()


def test_temporal_similarity_of_a_constant_velocity():
    z = torch.arange(T).view(1, T, 1, 1).expand(B, T, N, D) * 3.0
    assert TemporalSimilarity()(predict(z=z)).item() == pytest.approx(9)


@pytest.mark.parametrize("objective", [TemporalSimilarity(), Variance(over="time")], ids=["similarity", "variance"])
def test_windows_of_one_step_are_refused(objective):
    with pytest.raises(InputError, match="lengthen"):
        objective(predict(z=torch.randn(B, 1, N, D)))


def test_inverse_dynamics_learns_the_action_from_the_latents():
    specs = Specs(ActionSpec((-1,) * A, (1,) * A, (0,) * A, (1,) * A), ObservationSpec(8, 8))
    action = torch.randn(64, T - 1, A)
    place = torch.cat((torch.zeros(64, 1, A), action.cumsum(1)), 1)
    given = Prediction(z=torch.cat((place, place), -1).unsqueeze(2).expand(-1, -1, N, -1), h=place, action=action)
    torch.manual_seed(0)
    objective = InverseDynamics(hidden=32)
    objective.bind(specs, D)
    before = objective(given).item()
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        objective(given).backward()
        optimiser.step()
    assert before > 0.8 and objective(given).item() < 0.1


def test_weight_follows_the_ramp():
    objective = TemporalSimilarity(weight=6.0, ramp=(0.15, 0.5))
    assert [objective.weight_at(x) for x in (0.0, 0.15, 0.325, 0.5, 1.0)] == pytest.approx([0, 0, 3, 6, 6])
    assert TemporalSimilarity(weight=2.0).weight_at(0.0) == 2.0
    assert [TemporalSimilarity(ramp=(0.5, 0.5)).weight_at(x) for x in (0.49, 0.5)] == [0, 1]


@pytest.mark.parametrize(
    "build",
    [
        lambda: Regression(norm="l3"),
        lambda: Regression(source="free"),
        lambda: Regression(decay=0.9),
        lambda: Variance(over="frames"),
        lambda: Covariance(per="d"),
        lambda: TemporalSimilarity(weight=-1.0),
        lambda: TemporalSimilarity(weight=float("nan")),
        lambda: TemporalSimilarity(ramp=(0.5, 0.2)),
    ],
)
def test_wrong_arguments_get_one_line(build):
    with pytest.raises(InputError, match="expected") as error:
        build()
    assert "\n" not in str(error.value)
