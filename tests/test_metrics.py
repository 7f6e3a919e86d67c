"""Metrics on representations whose answer is known."""

from __future__ import annotations

import pytest
import torch

from jepa.metrics import (
    Moments,
    effective_ranks,
    feature_std,
    linear_cka,
    mean_cosine,
    prediction_gain,
    rankme,
    spectrum,
    squared_norms,
    time_std,
)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_counts_equally_strong_directions(rank):
    basis = torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))[0]
    z = torch.zeros(64, 8)
    z[:, :rank] = basis[:, :rank] - basis[:, :rank].mean(0)
    z[:, :rank] = torch.linalg.qr(z[:, :rank])[0]
    assert rankme(z).item() == pytest.approx(rank, rel=1e-4)


def test_rankme_ignores_a_common_offset_unless_asked_not_to():
    z = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    assert rankme(z + 100).item() == pytest.approx(rankme(z).item(), rel=1e-3)
    assert rankme(z + 100, centre=False) < 2 < 14 < rankme(z)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_rankme_of_a_point_is_one(value):
    assert rankme(torch.full((100, 3, 1, 16), value)).item() == pytest.approx(1.0)


def test_time_std_is_what_remains_without_the_background():
    torch.manual_seed(0)
    background, motion = 5 * torch.randn(400, 1, 2, 4), torch.randn(400, 9, 2, 4)
    z = background + 0.1 * motion + 50 * torch.randn(1, 1, 2, 4)  # the last: what only tells the token's place
    assert feature_std(z).mean().item() == pytest.approx(5, rel=0.1)
    assert time_std(z).mean().item() == pytest.approx(0.1, rel=0.05)


def test_mean_cosine_equals_the_mean_over_pairs():
    z = torch.randn(20, 6) + 1
    pairs = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
    expected = (pairs.sum() - 20) / (20 * 19)
    assert mean_cosine(z).item() == pytest.approx(expected.item(), abs=1e-6)
    assert mean_cosine(torch.ones(5, 3)).item() == pytest.approx(1)


def test_prediction_gain_of_perfect_copied_halved_and_still():
    now, later = torch.zeros(2, 3, 1, 4), torch.ones(2, 3, 1, 4)
    gains = [prediction_gain(p, later, now).item() for p in (later, now, (now + later) / 2, -later)]
    assert gains == pytest.approx([1, 0, 0.75, -3])
    assert prediction_gain(now, now, now) == 0


@pytest.mark.parametrize("sizes", [[1, 1, 298], [100, 200], [300]])
def test_moments_of_batches_are_those_of_all_rows(sizes):
    rows = 1000 + torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 5)
    whole, diagonal = Moments(5), Moments(5, diagonal=True)
    for part in rows.split(sizes):
        whole.add(part), diagonal.add(part)
    expected = torch.cov(rows.double().T, correction=0)
    assert torch.allclose(whole.mean, rows.double().mean(0), rtol=1e-12) and whole.count == 300
    assert torch.allclose(whole.covariance, expected, rtol=1e-8, atol=1e-12)
    assert torch.allclose(diagonal.covariance, expected.diagonal(), rtol=1e-8)
    assert torch.allclose(whole.std, rows.double().std(0, correction=0)) and torch.allclose(whole.std, diagonal.std)


def test_the_ranks_of_known_spectra():
    for k in (1, 3, 8):
        alike = effective_ranks(torch.tensor([2.0] * k + [0.0] * (8 - k)))
        assert list(alike.values()) == pytest.approx([k] * 3)
    uneven = effective_ranks(torch.tensor([4.0, 1.0]))
    share = torch.tensor([2 / 3, 1 / 3])
    assert uneven["rankme"] == pytest.approx(float((-share * share.log()).sum().exp()))
    assert uneven["participation_ratio"] == pytest.approx(25 / 17)
    assert set(effective_ranks(torch.zeros(4)).values()) == {1.0}


def test_the_rank_of_streamed_rows_is_that_of_their_singular_values():
    z = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 12) + 3
    z[:, 3] = z[:, 4]  # a direction that is not there
    variances = spectrum(Moments(12).add(z).covariance)
    assert variances.shape == (12,) and (variances.diff() <= 0).all() and variances[-1] == 0
    assert effective_ranks(variances)["rankme"] == pytest.approx(float(rankme(z)), rel=1e-4)


def cka(x, y, debiased=False, pieces=7):
    joint, pairs = Moments(x.shape[1] + y.shape[1]), list(zip(x.split(pieces), y.split(pieces)))
    for pair in pairs:
        joint.add(torch.cat(pair, dim=1))
    return linear_cka(joint, x.shape[1], squared_norms(pairs, joint) if debiased else None)


def test_cka_is_one_for_rotated_shifted_and_scaled_features_and_nothing_for_independent_ones():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, 20)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    for debiased in (False, True):
        assert cka(x, 7 * x @ rotation + 100, debiased) == pytest.approx(1, abs=1e-9)
    assert cka(x, x[:, :3], True) < 0.5  # a part of them is not alike
    others = [torch.randn(400, 30, generator=generator) for _ in range(20)]
    plain, debiased = ([cka(x, other, d) for other in others] for d in (False, True))
    assert min(plain) > 0.02 and abs(sum(debiased) / 20) < 0.01


def test_debiased_cka_is_made_of_unbiased_hsic():
    """Against Song et al. 2012, equation 5, with n x n kernels whose diagonals are zero."""

    def hsic(k, other):
        k, other, n = k - k.diag().diag(), other - other.diag().diag(), len(k)
        one = torch.ones(n, dtype=k.dtype)
        terms = (k @ other).trace() + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        return (terms - 2 / (n - 2) * (one @ k @ other @ one)) / (n * (n - 3))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64) + 2
    y = x[:, :4] + torch.randn(30, 4, generator=generator, dtype=torch.float64)
    k, other = x @ x.T, y @ y.T
    expected = hsic(k, other) / (hsic(k, k) * hsic(other, other)).sqrt()
    assert cka(x, y, debiased=True) == pytest.approx(float(expected), abs=1e-10)
    centred = [rows - rows.mean(0) for rows in (x, y)]
    plain = (centred[0].T @ centred[1]).norm() ** 2
    plain /= (centred[0].T @ centred[0]).norm() * (centred[1].T @ centred[1]).norm()
    assert cka(x, y) == pytest.approx(float(plain), abs=1e-10)
