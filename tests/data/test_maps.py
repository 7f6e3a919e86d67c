"""Labels of pixels: cut as the pixels are, at whatever resolution they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from filmed import film
from PIL import Image

from jepa.data.crops import Box, Pixels
from jepa.data.maps import map_file, maps_digest, read_map
from jepa.data.video_clips import VideoClips, VideoSource
from jepa.errors import InputError

F, H, W = 12, 48, 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A video whose pixels are its map, but for coding: quarters of four grey levels, another one in each frame."""
    maps = np.zeros((F, H, W), np.uint8)
    maps[:, :24, 32:], maps[:, 24:, :32], maps[:, 24:, 32:] = 1, 2, 3
    maps = (maps + np.arange(F, dtype=np.uint8)[:, None, None]) % 4
    film(tmp_path / "a.mp4", (60 * maps)[..., None].repeat(3, 3))
    np.save(tmp_path / "a.npy", maps)
    return tmp_path


def clips(folder: Path, **options) -> VideoClips:
    source = VideoSource(str(folder), 4, stride=2, decoder="pyav", maps=".", **options)
    return VideoClips(source, pixels=Pixels(24), time_limit=None)


def agree(sample) -> None:
    seen = (sample.video[:, 0].float() / 60).round()
    assert sample.maps.shape == (4, 24, 24) and sample.maps.dtype == torch.uint8
    assert (seen == sample.maps).float().mean() > 0.85  # but where quarters meet


def test_a_map_is_cut_as_the_pixels_are(folder):
    held = clips(folder)
    agree(held[0])
    for key in range(6):  # random crops, mirrored or not
        agree(held.draw(0, key))
    three = clips(folder, views=3).views(0)
    assert three.maps.shape == (12, 24, 24) and not torch.equal(three.maps[:4], three.maps[8:])


def test_a_coarser_map_gives_the_same_labels(folder):
    fine = clips(folder)[0].maps
    np.save(folder / "a.npy", np.load(folder / "a.npy")[:, ::4, ::4])
    assert (clips(folder)[0].maps == fine).float().mean() > 0.8 and torch.equal(
        clips(folder)[0].maps[:, ::12, ::12], fine[:, ::12, ::12]
    )


def test_each_pixel_has_the_label_at_its_middle(tmp_path):
    grid = np.arange(8 * 8, dtype=np.uint8).reshape(1, 8, 8)
    np.save(tmp_path / "map.npy", grid)

    def read(box: Box, size: tuple[int, int]) -> np.ndarray:
        return read_map(tmp_path / "map.npy", np.array([0]), 1, (8, 8), box, size)[0]

    assert np.array_equal(read(Box(0, 0, 8, 8), (8, 8)), grid[0])
    assert np.array_equal(read(Box(2, 4, 4, 4), (2, 2)), grid[0][[3, 5]][:, [5, 7]])
    assert np.array_equal(read(Box(2, 4, 2, 2), (4, 4)), grid[0][2:4, 4:6].repeat(2, 0).repeat(2, 1))


def test_an_image_has_one_picture_as_its_map(tmp_path):
    (tmp_path / "maps").mkdir()
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 7
    Image.fromarray(labels[..., None].repeat(3, 2)).save(tmp_path / "b.png")
    Image.fromarray(labels).save(tmp_path / "maps" / "b.png")
    source = VideoSource(str(tmp_path / "b.png"), 2, maps="maps")
    sample = VideoClips(source, pixels=Pixels(20), time_limit=None)[0]
    assert sample.maps.shape == (2, 20, 20) and (sample.maps[:, :, 10:] == 7).all() and not sample.maps[:, :, :10].any()


@pytest.mark.parametrize("maps", [".", "../pictures"])
def test_a_picture_is_not_its_own_map(tmp_path, maps):
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "b.png"
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(picture)
    held = VideoClips(VideoSource(str(picture), 1, maps=maps), pixels=Pixels(20), time_limit=None)
    assert "b.png has no map" in held[0].reason
    np.save(picture.with_suffix(".npy"), np.full((40, 40), 3, np.uint8))
    assert (held[0].maps == 3).all(), "a .npy beside it is"


def test_maps_that_do_not_fit(folder):
    def complaint() -> str:
        failed = clips(folder)[0]
        return failed.reason

    for wrong, message in (
        (np.zeros((F + 1, H, W), np.uint8), "expected .12,48,64. as the video"),
        (np.zeros((F, W, H), np.uint8), "expected .12,48,64. as the video"),
        (np.zeros((F, H, W)), "float64 .*expected uint8 classes or float32 values"),
        (np.zeros((F, H, W, 3), np.uint8), "expected uint8"),
    ):
        np.save(folder / "a.npy", wrong)
        with pytest.raises(InputError, match=message):
            raise InputError(complaint())
    (folder / "a.npy").write_bytes(b"nothing")
    assert "cannot be read as a map" in complaint()
    (folder / "a.npy").unlink()
    assert "a.mp4 has no map" in complaint()


def test_maps_are_known_by_their_content_and_are_of_one_kind(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    np.save(tmp_path / "b.npy", np.ones((2, 4, 4), np.uint8))
    names = ["a.mp4", "b.mp4"]
    before = maps_digest(tmp_path, ".", names)
    assert before[1] == "classes"
    assert before == maps_digest(tmp_path, ".", names) and map_file(tmp_path, ".", "a.avi").name == "a.npy"
    np.save(tmp_path / "b.npy", np.full((2, 4, 4), 2, np.uint8))
    assert maps_digest(tmp_path, ".", names) != before
    np.save(tmp_path / "b.npy", np.ones((2, 4, 4), np.float32))
    with pytest.raises(InputError, match="a.npy holds classes, .*b.npy values"):
        maps_digest(tmp_path, ".", names)
    with pytest.raises(InputError, match="c.mp4 has no map"):
        maps_digest(tmp_path, ".", ["c.mp4"])
