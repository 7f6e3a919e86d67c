"""SIGReg against the direct formula, and its sequence of directions."""

from __future__ import annotations

import io

import pytest
import torch

from jepa.objectives import SIGReg
from jepa.objectives.sigreg import epps_pulley
from jepa.schema import Prediction


def prediction(z: torch.Tensor) -> Prediction:
    return Prediction(z=z, h=z, action=torch.zeros(len(z), z.shape[1] - 1, 1))


def direct(samples: torch.Tensor, directions: torch.Tensor, knots: int) -> torch.Tensor:
    """The statistic as it is written down, with every wave in memory."""
    t = torch.linspace(0, 3, knots, dtype=samples.dtype)
    waves = (samples @ directions).unsqueeze(-1) * t
    gauss = torch.exp(-t.square() / 2)
    distance = (waves.cos().mean(1) - gauss).square() + waves.sin().mean(1).square()
    return samples.shape[1] * 2 * torch.trapezoid(distance * gauss, t, dim=-1).mean()


def test_value_and_gradient_equal_the_direct_formula():
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(5, 7, dtype=torch.float64), dim=0)
    samples = (2 * torch.randn(3, 11, 5, dtype=torch.float64) + 0.3).requires_grad_()
    ours, theirs = epps_pulley(samples, directions, 9), direct(samples, directions, 9)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (gradient,), (expected,) = torch.autograd.grad(ours, samples), torch.autograd.grad(theirs, samples)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_gaussian_latents_cost_less_than_collapsed_shifted_or_stretched_ones():
    torch.manual_seed(0)
    z = torch.randn(512, 2, 1, 8)
    cost = [SIGReg(directions=64)(prediction(x)).item() for x in (z, 0 * z, z + 1, 3 * z)]
    assert all(cost[0] * 10 < other for other in cost[1:])


def test_directions_are_fresh_seeded_and_resumed():
    z = prediction(torch.randn(16, 3, 2, 8))
    run, again, other = SIGReg(directions=4), SIGReg(directions=4), SIGReg(directions=4, seed=1)
    values = [run(z).item() for _ in range(4)]
    assert len(set(values)) == 4
    assert [again(z).item() for _ in range(2)] == values[:2] and other(z).item() not in values
    file = io.BytesIO()
    torch.save(again.state_dict(), file)
    file.seek(0)
    resumed = SIGReg(directions=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [resumed(z).item() for _ in range(2)] == values[2:]


def test_evaluation_repeats_itself_and_does_not_disturb_training():
    z = prediction(torch.randn(16, 3, 2, 8))
    objective = SIGReg(directions=4).eval()
    assert objective(z).item() == objective(z).item()
    assert objective.step == 0


def test_float32_under_autocast():
    z = torch.randn(32, 2, 1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SIGReg(directions=16)(prediction(z))
    assert value.dtype == torch.float32 and value.item() == SIGReg(directions=16)(prediction(z)).item()


def test_tokens_of_a_step_count_as_samples():
    z = torch.randn(12, 3, 2, 8)
    tokens = z.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    values = SIGReg(directions=8)(prediction(z)), SIGReg(directions=8)(prediction(tokens))
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
