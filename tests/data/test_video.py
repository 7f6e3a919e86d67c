"""Real and broken video files as episodes."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import decord
import numpy as np
import pytest
from footage import FRAMES, film, kind, numbers, real_clips
from PIL import Image

from jepa.data.clips import Clips
from jepa.data.index import VideoIndex
from jepa.data.video import VideoEpisodes
from jepa.errors import InputError
from jepa.testing import check_episodes

BIKES = next(path for path in real_clips() if path.stem == "bikes")


def test_frames_are_those_of_a_plain_read() -> None:
    store = VideoEpisodes(BIKES)
    plain = decord.VideoReader(str(BIKES))
    assert len(store) == 1 and store.length(0) == len(plain) and store.specs.action.width == 0
    assert (store.specs.observation.height, store.specs.observation.width) == plain[0].shape[:2]
    wanted = [200, 3, 3, len(plain) - 1]
    read = pickle.loads(pickle.dumps(store)).read(0, wanted)
    assert np.array_equal(read.video.permute(0, 2, 3, 1).numpy(), plain.get_batch(wanted).asnumpy())
    with pytest.raises(IndexError):
        store.read(0, [len(plain)])
    with pytest.raises(InputError, match="no column 'action'"):
        store.read(0, [0], ("action",))


def test_windows_of_a_folder_with_bad_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "below").mkdir()
    shutil.copy(BIKES, tmp_path / "below" / "b.MP4")
    (tmp_path / "a.mp4").write_bytes(BIKES.read_bytes()[: BIKES.stat().st_size // 2])
    (tmp_path / "c.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "image.png")
    store = VideoEpisodes(tmp_path, size=32)
    assert [store.where(n).name for n in range(len(store))] == ["b.MP4"] and store.skipped == 2
    assert "a.mp4" in caplog.text and "c.mp4" in caplog.text and "2 of 4 files" in caplog.text
    check_episodes(store)
    clips = Clips(store, frames=3, frame_skip=100)
    batch = clips.__getitems__([0, len(clips) - 1])
    assert batch.video.shape == (2, 3, 3, 32, 32) and batch.action is None
    assert batch.index[-1].tolist() == [0, 49]
    plain = decord.VideoReader(str(BIKES), width=32, height=32).get_batch([49, 149, 249]).asnumpy()
    # another resampling than the decoder's: antialiased, without its bias
    assert np.abs(batch.video[1].permute(0, 2, 3, 1).numpy().astype(int) - plain).mean() < 4


def test_files_of_another_decoder_and_labels(tmp_path: Path) -> None:
    """AV1, which decord does not decode, and uneven times, from an index with labels."""
    for name in ("av1.mp4", "uneven.mp4"):
        kind(tmp_path, name)
    VideoIndex.open(tmp_path).with_labels({"x": [1.0, 2.0], "y": [3.0, 4.0]}).write(tmp_path / "index.parquet")
    store = VideoEpisodes(tmp_path)
    assert store.specs.observation.state_names == ("x", "y")
    check_episodes(store)
    wanted = [FRAMES - 1, 0, 17, 17]
    for episode, label in enumerate(([1, 3], [2, 4])):
        read = store.read(episode, wanted)
        assert numbers(read.video.permute(0, 2, 3, 1).numpy()) == wanted
        assert read.state.tolist() == [label] * 4


def test_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        VideoEpisodes(tmp_path / "nothing")
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match="none of 1 files") as raised:
        VideoEpisodes(tmp_path)
    assert "\n" not in str(raised.value)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(InputError, match="images and no video"):
        VideoEpisodes(tmp_path)
    for number, clip in enumerate(real_clips()):
        shutil.copy(clip, tmp_path / f"{number}.mp4")
    with pytest.raises(InputError, match="videos of 3 sizes"):
        VideoEpisodes(tmp_path)
    film(tmp_path / "became.mp4", frames=9)
    store = VideoEpisodes(tmp_path / "became.mp4")
    film(tmp_path / "became.mp4", frames=5)
    with pytest.raises(InputError, match="has 5 frames, fewer than its index says"):
        store.read(0, [8])
