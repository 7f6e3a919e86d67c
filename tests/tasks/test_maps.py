"""Labels of pixels become labels of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from jepa.tasks.maps import gridded, token_maps

SHAPE = {"steps": 2, "grid": [2, 3], "tokens": 6}


def test_a_token_has_the_label_of_most_of_its_pixels():
    """Written out, token by token."""
    maps = torch.randint(0, 4, (3, 4, 4, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    maps[maps == 3] = 255
    maps[0, :2, :2, :3] = 255
    found = token_maps(maps, 2, (2, 3)).view(3, 2, 2, 3)
    for n, t, row, column in np.ndindex(3, 2, 2, 3):
        pixels = maps[n, 2 * t : 2 * t + 2, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten().tolist()
        known = [pixel for pixel in pixels if pixel != 255]
        want = max(sorted(set(known)), key=known.count) if known else 255  # of equals, the lowest
        assert found[n, t, row, column] == want
    assert found[0, 0, 0, 0] == 255


def test_a_token_has_the_mean_of_its_values():
    maps = torch.rand(2, 4, 4, 9, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0, 0] = torch.nan
    maps[1, :2, :2, :3] = torch.nan
    found = token_maps(maps, 2, (2, 3)).view(2, 2, 2, 3)
    assert found[0, 1, 1, 2] == pytest.approx(maps[0, 2:, 2:, 6:].mean().item())
    assert found[0, 0, 0, 0] == pytest.approx(np.nanmean(maps[0, :2, :2, :3].numpy()))
    assert found.isnan().nonzero().tolist() == [[1, 0, 0, 0]]


def test_columns_without_maps_stay_and_maps_become_one_column():
    plain = {"start": np.zeros(2)}
    assert gridded(plain, SHAPE) == plain
    maps = np.ones((2, 4, 4, 9), np.uint8)
    found = gridded(plain | {"maps": maps}, SHAPE)
    assert set(found) == {"start", "map"} and found["map"].shape == (2, 12) and found["map"].dtype == np.uint8


@pytest.mark.parametrize("change", [{"grid": None}, {"tokens": 12}, {"steps": 3}, {"grid": [3, 3], "tokens": 9}])
def test_tokens_in_no_grid_have_no_map(change):
    with pytest.raises(InputError, match="expected a grid that divides them; set pool to none"):
        gridded({"maps": np.ones((2, 4, 4, 9), np.uint8)}, SHAPE | change)
