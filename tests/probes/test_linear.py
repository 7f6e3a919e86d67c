from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from probes import linear
from probes.linear import LinearProbe


def fitted(probe, z, y):
    probe.build(z, y)
    probe.fit(z, y)
    return probe


def test_small_ridge_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 1, 1, 7, generator=generator) * torch.logspace(-2, 2, 7) + 5
    y = torch.randn(300, 2, generator=generator)
    probe = fitted(LinearProbe(ridge=1e-12), z, y)
    design = np.concatenate([z[:, 0, 0].double().numpy(), np.ones((300, 1))], axis=1)
    expected = design @ np.linalg.lstsq(design, y.double().numpy(), rcond=None)[0]
    assert np.abs(probe(z).detach().numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("system", ["covariance", "measured again", "dual"])
def test_every_system_gives_the_weights_of_the_normal_equations(system, monkeypatch):
    """In one batch as in several of different sizes."""
    generator = torch.Generator().manual_seed(1)
    n, width = (60, 20) if system == "measured again" else (20, 50)
    if system != "covariance":
        monkeypatch.setattr(linear, "NARROW", 10)
    z = 3 + torch.randn(n, 1, 1, width, generator=generator) * torch.logspace(-1, 1, width)
    y = 5 + 2 * torch.randn(n, 3, generator=generator)
    x = (z[:, 0, 0].double() - z[:, 0, 0].double().mean(0)) / z[:, 0, 0].double().std(0, correction=0)
    t = (y.double() - y.double().mean(0)) / y.double().std(0, correction=0)
    for sizes in ([n], [7, n - 8, 1]):
        probe = LinearProbe(ridge=0.1)
        probe.build(z[:1], y)
        probe.fit_batches(list(zip(z.split(sizes), y.split(sizes))))
        w = probe.head.weight.double().T
        gradient = x.T @ (x @ w - t) / n + 0.1 * w
        assert gradient.abs().max() < 1e-6
        assert torch.allclose(probe(z).mean(0), y.mean(0), atol=1e-5)


def test_the_dual_system_goes_over_the_batches_no_more_than_it_must():
    """Once for the targets, once for each batch and all that it meets, and once for the weights."""
    passes, x, y = [], torch.randn(9, 20), torch.randn(9, 2)

    class Counted:
        def __iter__(self):
            passes.append(1)
            return zip(x.split(3), y.split(3))

    linear.dual(Counted(), torch.nn.Identity(), 9, 0.1)
    assert len(passes) == 1 + (1 + 3) + 1


@pytest.mark.parametrize("whitened", [True, False])
def test_logistic_regression_is_where_the_gradient_is_zero(whitened, monkeypatch):
    """Features that are far from independent, in batches that are read again and again."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    y = (z[:, :3] + 4 * torch.randn(400, 3, generator=generator)).argmax(1)
    z = z[:, None, None]
    monkeypatch.setattr(linear, "RESIDENT", 0)
    if not whitened:
        monkeypatch.setattr(linear, "NARROW", 1)
    probe = LinearProbe(ridge=1e-2, classes=3)
    probe.build(z[:1], y)
    probe.fit_batches(list(zip(z.split(150), y.split(150))))
    x, w = probe.features(z[:, 0, 0]).double(), probe.head.weight.double().T
    residual = (x @ w + probe.head.bias.double()).softmax(1) - torch.nn.functional.one_hot(y, 3)
    assert (x.T @ residual / 400 + 1e-2 * w).abs().max() < 1e-3 and residual.mean(0).abs().max() < 1e-3


def test_too_wide_and_too_many_at_once_are_refused(monkeypatch):
    monkeypatch.setattr(linear, "LARGEST_SYSTEM", 8)
    with pytest.raises(InputError, match="10 examples of 9 features: expected at most 8"):
        fitted(LinearProbe(), torch.randn(10, 1, 1, 9), torch.randn(10, 1))


def test_a_linear_map_is_read_exactly_from_flat_tokens_but_not_from_their_mean():
    z = torch.randn(400, 1, 4, 3, generator=torch.Generator().manual_seed(2))
    y = z[:, 0, 0, :2] - z[:, 0, 1, :2]
    error = {tokens: (fitted(LinearProbe(1e-9, tokens), z, y)(z) - y).square().mean() for tokens in ("flat", "mean")}
    assert error["flat"] < 1e-8 and error["mean"] > 0.1


def test_the_answer_does_not_depend_on_the_units_of_features_or_targets():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(200, 1, 1, 5, generator=generator)
    y = z[:, 0, 0, :1] + torch.randn(200, 1, generator=generator)
    plain = fitted(LinearProbe(0.1), z, y)(z)
    scaled = fitted(LinearProbe(0.1), 100 * z + 3, 50 * y + 7)(100 * z + 3)
    assert torch.allclose(50 * plain + 7, scaled, atol=1e-2)


def test_a_constant_feature_is_harmless():
    z = torch.randn(100, 1, 1, 3, generator=torch.Generator().manual_seed(4))
    y = z[:, 0, 0, :1].clone()
    z[..., 2] = 0.1
    assert (fitted(LinearProbe(1e-9), z, y)(z) - y).abs().max() < 1e-4


def test_classes_are_separated():
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(300) % 3
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    z = (centres[y] + 0.5 * torch.randn(300, 2, generator=generator))[:, None, None]
    probe = fitted(LinearProbe(classes=3), z, y)
    assert (probe(z).argmax(1) == y).float().mean() > 0.98


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="ridge=0"):
        LinearProbe(ridge=0)
    with pytest.raises(InputError, match="classes=1"):
        LinearProbe(classes=1)
