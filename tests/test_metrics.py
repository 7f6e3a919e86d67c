"""Metrics on representations whose answer is known."""

from __future__ import annotations

import pytest
import torch

from jepa.metrics import feature_std, mean_cosine, prediction_gain, rankme, time_std


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
