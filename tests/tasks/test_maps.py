"""Labels of pixels become labels of tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.data.video_clips import VideoSource
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.models.frozen import FrozenEncoder
from jepa.models.video import VideoViT
from jepa.tasks import embed_clips
from jepa.tasks.embed import embed
from jepa.tasks.maps import gridded, token_maps
from probes.cache import FeatureCache

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from filmed import film  # noqa: E402

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


def filmed(folder: Path, *kinds: type | None) -> Path:
    """A video for each kind of map, 0.mp4 and so on: classes that count the columns of 16 pixels, values, or none."""
    folder.mkdir(exist_ok=True)
    for number, kind in enumerate(kinds):
        film(folder / f"{number}.mp4", np.zeros((4, 64, 64, 3), np.uint8))
        if kind is not None:
            np.save(folder / f"{number}.npy", np.broadcast_to(np.arange(64, dtype=kind) // 16, (64, 64)))
    return folder


def embedded(out: Path, *places: tuple[Path, str | None], patch: int = 8, size: int = 48, **options) -> Path:
    """The cache of a first frame of each video of some folders, which have maps or not."""
    torch.manual_seed(0)
    world = FrozenEncoder(VideoViT(size=size, patch=patch, dim=8, depth=1, heads=2, frames=1, tubelet=1))
    sources = [VideoSource(str(folder), 1, decoder="pyav", maps=maps) for folder, maps in places]
    data = VideoData(sources, splits=(1.0, 0.0, 0.0), size=size, batch_size=2, workers=0, time_limit=None)
    return embed(world, data, out, ["train"], **options)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    return filmed(tmp_path / "films", np.uint8)


def test_halved_tokens_have_maps_where_their_sides_are_even(films, tmp_path):
    """Of three tokens come two, the second of which is one alone: half of the picture is not what it saw."""
    with pytest.raises(InputError, match="pool=grid of 3x3 tokens that have maps: expected even sides"):
        embedded(tmp_path / "odd", (films, "."), patch=16, pool="grid")
    with pytest.raises(InputError, match="pool=grid_time of 3x3 tokens"):
        embedded(tmp_path / "odd", (films, "."), patch=16, pool="grid_time")
    assert embedded(tmp_path / "plain", (films, None), patch=16, pool="grid").is_dir()
    whole = FeatureCache(embedded(tmp_path / "whole", (films, "."), patch=16, size=64)).column("map")[:]
    assert whole.tolist() == [[0, 1, 2, 3] * 4] and whole.dtype == np.uint8
    even = FeatureCache(embedded(tmp_path / "even", (films, "."), patch=8, size=64, pool="grid")).column("map")[:]
    assert np.array_equal(whole, even)


@pytest.mark.parametrize(("kind", "told"), [(np.float32, "values"), (None, "missing")])
def test_sources_have_maps_of_one_kind(films, tmp_path, kind, told):
    other = filmed(tmp_path / "other", kind)
    with pytest.raises(InputError, match=f"maps of {films} are classes, of {other} {told}: expected one kind"):
        embedded(tmp_path / "cache", (films, "."), (other, None if kind is None else "."))


def test_only_maps_of_what_is_embedded_are_read_each_once(tmp_path, monkeypatch):
    films, digest, asked = filmed(tmp_path / "films", np.uint8, None), embed_clips.maps_digest, []

    def listen(folder: Path, maps: str, names) -> tuple[str, str]:
        asked.extend(names)
        return digest(folder, maps, names)

    monkeypatch.setattr(embed_clips, "maps_digest", listen)
    embedded(tmp_path / "cache", (films, "."), limit=1)
    assert asked == ["0.mp4"]
    with pytest.raises(InputError, match="1.mp4 has no map"):
        embedded(tmp_path / "all", (films, "."))
