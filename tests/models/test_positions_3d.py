"""Positions of tubelets against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from jepa.errors import InputError
from jepa.models.positions import GridPositions, rotary_table, rotary_table_3d, rotate, rotate_3d, sincos_2d, sincos_3d

GRID = (3, 2, 5)
PLACES = [(t, r, c) for t in range(3) for r in range(2) for c in range(5)]
EVERY = torch.arange(len(PLACES))


@pytest.mark.parametrize("width", [24, 16, 10, 48])
def test_uniform_sincos_gives_each_axis_a_third_and_cuts(width):
    each = 2 * math.ceil(width / 6)
    table = sincos_3d(GRID, width)
    for number, place in enumerate(PLACES):
        expected = []
        for position in place:
            angles = [position * 10000.0 ** (-i / (each / 2)) for i in range(each // 2)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        assert torch.allclose(table[number], torch.tensor(expected[:width]), atol=1e-6)


def test_plain_sincos_gives_time_a_half():
    table = sincos_3d(GRID, 32, uniform=False)
    for number, place in enumerate(PLACES):
        expected = []
        for position, each in zip(place, (16, 8, 8)):
            angles = [position * 10000.0 ** (-i / (each / 2)) for i in range(each // 2)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        assert torch.allclose(table[number], torch.tensor(expected), atol=1e-6)
    with pytest.raises(InputError, match="multiple of 8"):
        sincos_3d(GRID, 12, uniform=False)


@pytest.mark.parametrize("head", [24, 12, 32, 10, 64, 15, 4])
def test_interleaved_rotary_turns_a_third_of_the_head_per_axis(head):
    each = 2 * (head // 3 // 2)
    x = torch.randn(2, 3, len(PLACES), head)
    y = rotate_3d(x, rotary_table_3d(EVERY, GRID, head, tiled=False))
    for axis in range(3):
        part = slice(axis * each, (axis + 1) * each)
        times = torch.tensor([place[axis] for place in PLACES])
        assert torch.allclose(y[..., part], rotate(x[..., part], rotary_table(times, each)), atol=1e-6)
    assert torch.equal(y[..., 3 * each :], x[..., 3 * each :])


@pytest.mark.parametrize("head", [24, 10, 15])
def test_tiled_rotary_repeats_the_frequencies_instead_of_pairing_them(head):
    each = 2 * (head // 3 // 2)
    x = torch.randn(len(PLACES), head)
    expected = x.clone()
    for number, place in enumerate(PLACES):
        for axis, position in enumerate(place):
            for j in range(each):
                angle = position * 10000.0 ** (-(j % (each // 2)) / (each / 2))
                here = axis * each + j
                other = -x[number, here + 1] if j % 2 == 0 else x[number, here - 1]
                expected[number, here] = x[number, here] * math.cos(angle) + other * math.sin(angle)
    assert torch.allclose(rotate_3d(x, rotary_table_3d(EVERY, GRID, head, tiled=True)), expected, atol=1e-5)


def test_interleaved_products_depend_on_the_differences_of_places():
    q, k = torch.randn(2, 1, 24)
    big = (9, 9, 9)

    def score(a, b):
        index = torch.tensor([(t * 9 + r) * 9 + c for t, r, c in (a, b)])
        cos, sin = rotary_table_3d(index, big, 24, tiled=False)
        return rotate_3d(q, (cos[:1], sin[:1])) @ rotate_3d(k, (cos[1:], sin[1:])).T

    assert torch.allclose(score((1, 2, 3), (0, 4, 2)), score((6, 5, 4), (5, 7, 3)), atol=1e-4)
    assert not torch.allclose(score((1, 2, 3), (0, 4, 2)), score((1, 2, 3), (0, 4, 3)), atol=1e-3)


@pytest.mark.parametrize("form", ["rotary_tiled", "rotary_interleaved", "sincos", "sincos_uniform"])
def test_positions_of_chosen_tokens_are_those_among_all(form):
    positions = GridPositions(form, GRID, 48, 2)
    x, q = torch.randn(2, 30, 48), torch.randn(2, 2, 30, 24)
    keep = torch.stack([torch.randperm(30)[:7] for _ in range(2)])
    rows = torch.arange(2)[:, None]
    assert torch.equal(positions.add(x[rows, keep], keep), positions.add(x)[rows, keep])
    some, every = positions.rotation(x[rows, keep], keep), positions.rotation(x)
    assert (some is None) == (every is None) == form.startswith("sincos")
    if every is not None:
        chosen = q.transpose(1, 2)[rows, keep].transpose(1, 2)
        expected = every(q).transpose(1, 2)[rows, keep].transpose(1, 2)
        assert torch.allclose(some(chosen), expected, rtol=0, atol=1e-6)


def test_images_have_the_positions_of_rows_and_columns():
    x = torch.zeros(1, 10, 16)
    assert torch.equal(GridPositions("sincos_2d", (1, 2, 5), 16, 2).add(x)[0], sincos_2d((2, 5), 16))
    with pytest.raises(InputError, match="for images"):
        GridPositions("sincos_2d", GRID, 16, 2)


def test_angles_are_exact_when_the_model_is_in_bfloat16():
    x, q = torch.zeros(1, 640, 48), torch.randn(1, 2, 640, 24)
    exact, lower = (GridPositions("rotary_tiled", (64, 2, 5), 48, 2) for _ in range(2))
    lower.bfloat16()
    assert torch.equal(lower.rotation(x.bfloat16())(q), exact.rotation(x)(q))
    assert lower.rotation(x.bfloat16())(q.bfloat16()).dtype == torch.bfloat16


def test_unknown_form_is_named():
    with pytest.raises(InputError, match="did you mean 'rotary_tiled'"):
        GridPositions("rotary_tilled", GRID, 48, 2)
