from __future__ import annotations

import numpy as np
import pytest

from jepa.data.statistics import moments


def test_moments_of_blocks_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal([3.0, 1e4], [2.0, 0.5], size=(1000, 2)).astype(np.float32)
    mean, std = moments(np.split(rows, [1, 1, 10, 700]), 2)
    assert mean == pytest.approx(rows.astype(np.float64).mean(0), rel=1e-9)
    assert std == pytest.approx(rows.astype(np.float64).std(0), rel=1e-9)


def test_constants_stay_unscaled() -> None:
    assert moments([np.full((9, 2), [5.0, -0.1], np.float32)], 2) == (pytest.approx((5.0, -0.1)), (1.0, 1.0))
    assert moments([], 2) == ((0.0, 0.0), (1.0, 1.0))
    assert moments([np.zeros((4, 0))], 0) == ((), ())
