from __future__ import annotations

import pytest
import torch

from jepa.data.transforms import random_shift, resize


def test_resize_stays_uint8_and_keeps_the_mean() -> None:
    video = torch.randint(256, (2, 5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = resize(video, 16)
    assert small.shape == (2, 5, 3, 16, 16) and small.dtype == torch.uint8
    assert small.float().mean() == pytest.approx(video.float().mean().item(), abs=0.5)
    assert resize(video, 32) is video
    assert torch.equal(resize(video[1, 2], 16), small[1, 2])


def test_shift_is_the_same_for_all_frames_of_a_window() -> None:
    height, width, pixels = 10, 12, 3
    place = torch.arange(height * width, dtype=torch.uint8).view(1, 1, 1, height, width)
    video = place.expand(64, 4, 3, height, width)
    moved = random_shift(video, pixels, torch.Generator().manual_seed(0))
    assert moved.shape == video.shape and moved.dtype == torch.uint8
    assert (moved == moved[:, :1, :1]).all()  # frames and channels alike
    centre = moved[:, 0, 0, 5, 6].int()
    rows, columns = centre // width - 5, centre % width - 6
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(-pixels, pixels + 1))
    for window, row, column in zip(moved, rows, columns):
        expected = place[0, 0, 0][(torch.arange(height) + row).clamp(0, height - 1)]
        assert torch.equal(window[0, 0], expected[:, (torch.arange(width) + column).clamp(0, width - 1)])
    assert torch.equal(moved, random_shift(video, pixels, torch.Generator().manual_seed(0)))
