"""Crops: the published random box, cut before it is resized, in uint8, all frames alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from jepa.data.crops import Box, Pixels, around, centre_box, cut, random_box, side_boxes
from jepa.errors import InputError


def boxes(height: int, width: int, count: int = 4000, **options) -> np.ndarray:
    return np.array([random_box(height, width, key, **options) for key in range(count)])


@pytest.mark.parametrize("shape", [(720, 1280), (240, 320), (480, 480), (1, 1), (2, 500)])
def test_random_boxes_lie_within_the_frame(shape):
    drawn = boxes(*shape, count=500)
    assert (drawn[:, :2] >= 0).all() and (drawn[:, 2:] >= 1).all()
    assert (drawn[:, 0] + drawn[:, 2] <= shape[0]).all() and (drawn[:, 1] + drawn[:, 3] <= shape[1]).all()


def test_the_first_try_fits_a_square_often_and_its_area_and_aspect_are_as_published():
    top, left, height, width = boxes(1000, 1000, scale=(0.3, 0.7)).T
    area, ratio = height * width / 1e6, width / height
    # with at most 0.7 of the area and these aspects every first try fits: nothing is rejected, the laws are exact
    places = np.linspace(0.01, 0.99, 9)
    assert np.abs(np.quantile(area, places) - (0.3 + 0.4 * places)).max() < 0.01
    expected = np.log(0.75) + places * np.log(1.35 / 0.75)
    assert np.abs(np.quantile(np.log(ratio), places) - expected).max() < 0.015
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 0.05  # drawn apart
    assert np.abs(np.quantile(top / (1000 - height), places) - places).max() < 0.03
    assert np.abs(np.quantile(left / (1000 - width), places) - places).max() < 0.03


def test_a_frame_that_no_box_fits_is_cut_in_the_centre():
    assert random_box(100, 1000, 3) == Box(0, 432, 100, 135)
    assert random_box(1000, 100, 3) == Box(433, 0, 133, 100)


def test_the_centre_box_has_the_aspect_of_the_result():
    assert centre_box(720, 1280, 1.0) == Box(0, 280, 720, 720)
    assert centre_box(720, 1280, 16 / 9) == Box(0, 0, 720, 1280)
    assert centre_box(100, 100, 2.0) == Box(25, 0, 50, 100)


def test_views_lie_along_the_long_side():
    assert side_boxes(720, 1280, 1.0, 1) == [centre_box(720, 1280, 1.0)]
    assert side_boxes(720, 1280, 1.0, 3) == [Box(0, 0, 720, 720), Box(0, 280, 720, 720), Box(0, 560, 720, 720)]
    assert side_boxes(99, 64, 1.0, 3) == [Box(0, 0, 64, 64), Box(17, 0, 64, 64), Box(35, 0, 64, 64)]
    assert side_boxes(100, 100, 2.0, 3) == [Box(0, 0, 50, 100), Box(25, 0, 50, 100), Box(50, 0, 50, 100)]
    assert side_boxes(50, 50, 1.0, 3) == [Box(0, 0, 50, 50)] * 3
    # as published: the short side resized to the crop, which begins at 0, (long - crop) / 2 and long - crop
    for place, box in enumerate(side_boxes(256, 340, 1.0, 3)):
        assert box.left * 224 / 256 == pytest.approx(place * (340 * 224 / 256 - 224) / 2)


def test_what_is_cut_out_of_a_part_is_what_is_cut_out_of_the_whole():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    boxes = [Box(20, 31, 40, 50), Box(11, 60, 33, 21)]
    outer = around(boxes)
    assert outer == Box(11, 31, 49, 50) and around(boxes[:1]) == boxes[0]
    part = pixels[:, outer.top : outer.top + outer.height, outer.left : outer.left + outer.width]
    for box in boxes:
        np.testing.assert_array_equal(cut(part, box.within(outer), (16, 24)), cut(pixels, box, (16, 24)))


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (300, 200)])
@pytest.mark.parametrize("flip", [False, True])
def test_uint8_is_within_a_grey_level_of_float(size, flip):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 120, 200, 3), dtype=np.uint8)
    box = Box(7, 31, 101, 150)
    part = torch.from_numpy(pixels[:, 7:108, 31:181]).permute(0, 3, 1, 2).float()
    expected = interpolate(part, size=size, mode="bilinear", antialias=True)
    expected = (expected.flip(-1) if flip else expected).permute(0, 2, 3, 1)
    result = cut(pixels, box, size, flip)
    assert result.dtype == np.uint8 and result.shape == (3, *size, 3) and result.flags.c_contiguous
    assert np.abs(result - expected.round().numpy()).max() <= 1


def test_all_frames_are_cut_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 90, 120, 3), dtype=np.uint8).repeat(5, 0)
    result = cut(pixels, random_box(90, 120, 11), (32, 32), True)
    assert (result == result[:1]).all()


def test_nothing_is_resized_that_has_the_size():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    assert (cut(pixels, Box(3, 5, 32, 48), (32, 48)) == pixels[:, 3:35, 5:53]).all()


@pytest.mark.parametrize("given", [{"scale": (0.5, 0.2)}, {"scale": (0.0, 1)}, {"aspect": (0, 1)}, {"size": 0}])
def test_nonsense_is_refused(given):
    with pytest.raises(InputError, match=f"{next(iter(given))}.* expected"):
        Pixels(**given)
