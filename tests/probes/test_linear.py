from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from probes.linear import LinearProbe, ridge


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


def test_ridge_meets_its_normal_equations_in_both_systems():
    generator = torch.Generator().manual_seed(1)
    for n, width in ((50, 20), (20, 50)):
        x = torch.randn(n, width, generator=generator, dtype=torch.float64)
        y = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        w = ridge(x, y, 0.1)
        gradient = x.T @ (x @ w - y) / n + 0.1 * w
        assert gradient.abs().max() < 1e-12


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
