"""Intervals and tests against published and hand-computed values."""

import math

import numpy as np
import pytest

from jepa.evaluation.statistics import bootstrap, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    "successes,trials,low,high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_examples_of_newcombe_1998(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_edges():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(50, 50)[1] == 1.0
    z = 1.959963984540054
    assert wilson(50, 50)[0] == pytest.approx(50 / (50 + z * z))
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_mcnemar_is_the_two_sided_binomial_test():
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(5, 5) == 1.0 and mcnemar(0, 0) == 1.0
    assert mcnemar(0, 8) == pytest.approx(2 / 2**8)


def test_paired_difference_without_correlation_is_square_and_add():
    """2x2 table of independent outcomes: phi is zero and the interval is that of two unpaired rates."""
    both, only_first, only_second, neither = 24, 36, 16, 24
    difference, low, high = paired_difference(both, only_first, only_second, neither)
    (p_low, p_high), (q_low, q_high) = wilson(60, 100), wilson(40, 100)
    assert difference == pytest.approx(0.2)
    assert low == pytest.approx(0.2 - math.hypot(0.6 - p_low, q_high - 0.4))
    assert high == pytest.approx(0.2 + math.hypot(p_high - 0.6, 0.4 - q_low))


def test_paired_difference_is_antisymmetric_and_narrows_with_correlation():
    difference, low, high = paired_difference(60, 12, 3, 25)
    assert paired_difference(60, 3, 12, 25) == pytest.approx((-difference, -high, -low))
    _, wide_low, wide_high = paired_difference(41, 31, 22, 6)  # the same margins, outcomes that exclude each other
    assert high - low < wide_high - wide_low
    assert paired_difference(100, 0, 0, 0)[0] == 0
    assert paired_difference(0, 0, 0, 0) == (0.0, -1.0, 1.0)


def test_paired_difference_covers_the_truth():
    """Over many draws of 60 pairs the 95 % interval holds the true difference about 95 times of 100."""
    generator, truth = np.random.default_rng(0), [0.6, 0.2, 0.1, 0.1]
    draws = [paired_difference(*generator.multinomial(60, truth)) for _ in range(2000)]
    assert 0.93 < np.mean([low <= 0.1 <= high for _, low, high in draws]) < 0.98


def test_bootstrap_nears_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap(values.tolist())
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap(values.tolist()) == (low, high)
    assert bootstrap([]) is None and bootstrap([4.0]) == (4.0, 4.0)
