"""Written videos are whole, and hold what they were given."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.data.decoders import open_video
from jepa.data.film import write_video


def test_frames_come_back_at_their_times(tmp_path):
    frames = np.linspace(0, 200, 10).astype(np.uint8)[:, None, None, None].repeat(32, 1).repeat(64, 2).repeat(3, 3)
    write_video(tmp_path / "a.mp4", frames, fps=10)
    with open_video(tmp_path / "a.mp4") as film:
        assert np.allclose(film.times, np.arange(10) / 10, atol=1e-6) and (film.height, film.width) == (32, 64)
        assert np.abs(film.decode(np.arange(10)).astype(int) - frames).max() <= 3


def test_a_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    from jepa.data import film

    class Broken:
        VideoFrame = None

        @staticmethod
        def open(path, mode):
            open(path, "wb").write(b"half")
            raise OSError("the disk went away")

    monkeypatch.setattr(film, "package", lambda: Broken)
    with pytest.raises(OSError, match="went away"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8))
    assert not list(tmp_path.iterdir())
