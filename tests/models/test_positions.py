"""Positions against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from jepa.errors import InputError
from jepa.models.positions import rotary_table, rotate, sincos_2d


def test_rotation_is_a_complex_product():
    """Pair i at time t turns by t * base^(-2i/head)."""
    head, times = 8, torch.tensor([0, 1, 7, 1000])
    x = torch.randn(2, 3, 4, head, dtype=torch.float64)
    omega = torch.tensor([10000.0 ** (-2 * i / head) for i in range(head // 2)], dtype=torch.float64)
    expected = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * times[:, None] * omega)
    actual = rotate(x, rotary_table(times, head))
    assert torch.allclose(actual, torch.view_as_real(expected).flatten(-2), atol=1e-4)
    assert torch.equal(actual[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("shift", [1, 5, 400])
def test_a_product_depends_on_the_difference_of_times(shift):
    q, k = torch.randn(2, 1, 1, 5, 16)
    times = torch.arange(5)

    def scores(offset):
        table = rotary_table(times + offset, 16)
        return rotate(q, table) @ rotate(k, table).transpose(-1, -2)

    assert torch.allclose(scores(0), scores(shift), atol=1e-3)


def test_tables_are_float32_whatever_the_default():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(part.dtype == torch.float32 for part in rotary_table(torch.arange(3), 8))
    assert rotate(torch.zeros(1, 3, 8, dtype=torch.bfloat16), rotary_table(torch.arange(3), 8)).dtype == torch.bfloat16


def test_sincos_closed_form():
    rows, columns, width = 3, 5, 16
    table = sincos_2d((rows, columns), width)
    quarter = width // 4
    for r in range(rows):
        for c in range(columns):
            expected = []
            for place in (r, c):
                angles = [place * 10000.0 ** (-i / quarter) for i in range(quarter)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            assert torch.allclose(table[r * columns + c], torch.tensor(expected), atol=1e-6)


def test_sincos_wants_quarters():
    with pytest.raises(InputError, match="multiple of 4"):
        sincos_2d((2, 2), 6)
