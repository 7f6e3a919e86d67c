"""The dense loss in closed form, and regularisers on what a masked model hands them."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.objectives import ContextRegression, Covariance, Regression, SIGReg, Variance
from jepa.schema import Prediction

B, K, L, M, D = 6, 5, 4, 3, 8


def masked(**given) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    shapes = {"z": (B, 1, K, D), "h": (B, M, L, D), "p": (B, M, L, D), "context": (B, 1, K, D)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drawn |= {"context_h": drawn["context"] + 2, "distance": torch.arange(1.0, K + 1).square().expand(B, 1, K)}
    return Prediction(**(drawn | {"action": torch.zeros(B, 0, 0)} | given))


def test_tokens_count_less_the_farther_they_are_from_what_is_hidden():
    """Every error is 2 and the distances are 1, 4, 9, ...: mean of 2 / 1, 2 / 2, 2 / 3, ..."""
    assert ContextRegression()(masked()).item() == pytest.approx(2 * sum(1 / k for k in range(1, K + 1)) / K)
    assert ContextRegression(by_distance=False)(masked()).item() == pytest.approx(2)
    assert ContextRegression(by_distance=False)(masked(distance=None)).item() == pytest.approx(2)


@pytest.mark.parametrize(("norm", "expected"), [("l1", 2.0), ("l2", 4.0), ("smooth_l1", 1.5)])
def test_norms_of_a_known_difference(norm, expected):
    assert ContextRegression(norm, by_distance=False)(masked()).item() == pytest.approx(expected)


def test_rows_of_packed_masks_count_alike():
    """Contexts of 1 and of 4 tokens, with errors 1 and 3, end to end."""
    context = torch.tensor([1.0, 3, 3, 3, 3]).view(1, 1, 5, 1).expand(1, 1, 5, D)
    weight = torch.tensor([2.5, *[0.625] * 4]).view(1, 1, 5)
    packed = masked(context=context, context_h=torch.zeros_like(context), distance=None, context_weight=weight)
    assert ContextRegression(by_distance=False)(packed).item() == pytest.approx(2)


def test_gradients_reach_the_forecast_of_every_visible_token():
    context = torch.zeros(B, 1, K, D, requires_grad=True)
    ContextRegression()(masked(context=context)).backward()
    sizes = context.grad.abs().sum(-1)[0, 0]
    assert (sizes / sizes[0]).tolist() == pytest.approx([1 / k for k in range(1, K + 1)])


def test_the_weight_follows_the_published_ramp():
    """Zero until step 15,000 of 135,000, in a line to 0.5 at step 30,000."""
    objective = ContextRegression(ramp=(15 / 135, 30 / 135))
    assert [objective.weight_at(step / 135) for step in (0, 15, 22.5, 30, 135)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])


def test_what_is_missing_is_said_in_one_line():
    for given in ({"context": None}, {"context_h": None}, {"distance": None}):
        with pytest.raises(InputError, match="context=true") as error:
            ContextRegression()(masked(**given))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="did you mean 'l1'"):
        ContextRegression(norm="L1_")


def test_regression_scores_all_targets_of_a_masked_model():
    prediction = masked()
    expected = (prediction.p - prediction.h).abs().mean()
    assert Regression("l1")(prediction).item() == pytest.approx(expected.item())


def test_only_clips_see_latents_that_tell_nothing_but_their_place():
    """Each of 200 places has a latent of its own, the same in all clips: that clips have collapsed is not seen."""
    torch.manual_seed(0)
    places = masked(z=3 * torch.randn(1, 1, 200, D).expand(64, -1, -1, -1))
    assert Variance(over="batch")(places) == 0 and Variance(over="clip")(places).item() == pytest.approx(0.99)
    alive = masked(z=places.z + 3 * torch.randn(64, 1, 1, D))
    assert Variance(over="clip")(alive) == 0


def test_statistics_of_clips_are_those_of_their_means():
    z = masked().z
    mean = z.mean((1, 2), keepdim=True)
    for build in (Variance, Covariance, lambda over: SIGReg(directions=32, over=over).eval()):
        expected = build(over="batch")(masked(z=mean)).item()
        assert build(over="clip")(masked()).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_and_a_step_of_visible_tokens_are_the_same_samples():
    for build in (Variance, Covariance, lambda over: SIGReg(directions=32, over=over).eval()):
        assert build(over="batch")(masked()).item() == pytest.approx(build(over="step")(masked()).item(), rel=1e-5)
