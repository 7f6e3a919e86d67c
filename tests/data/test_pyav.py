"""PyAV leaves out frames that nobody needs, and what it decodes is the same to the last bit."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from jepa.data.decoders import open_video

FRAMES, HEIGHT, WIDTH = 40, 96, 128
KINDS = ("bf=3:b-pyramid=none", "bf=3:b-pyramid=normal", "bf=0", "bf=2:open-gop=1")


@pytest.fixture(scope="module", params=KINDS)
def film(request, tmp_path_factory):
    """A texture that moves, with all kinds of frames that refer to each other."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8 + FRAMES, 3), dtype=np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as made:
        options = {"x264-params": f"{request.param}:b-adapt=0:scenecut=0:keyint=15"}
        stream = made.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            picture = np.ascontiguousarray(texture[:, 3 * number : 3 * number + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return path


def everything(path):
    """All frames, decoded from the beginning."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_what_is_left_out_changes_nothing(film):
    true = everything(film)
    random = np.random.default_rng(1)
    with open_video(film, "pyav") as reader:
        for number in range(FRAMES):
            np.testing.assert_array_equal(reader.decode(np.array([number])), true[[number]])
        for stride in (2, 3, 4, 7):
            frames = np.arange(random.integers(stride), FRAMES, stride)
            np.testing.assert_array_equal(reader.decode(frames), true[frames])
        frames = random.integers(0, FRAMES, 25)  # any order, with repeats
        np.testing.assert_array_equal(reader.decode(frames), true[frames])
        assert reader.decode(np.zeros(0, np.int64)).shape == (0, HEIGHT, WIDTH, 3)


def test_frames_that_nobody_needs_are_not_decoded(film):
    with open_video(film, "pyav") as reader:
        reader._due = frozenset(reader.table.pts[[0, FRAMES - 1]].tolist())
        reader._container.seek(0)
        shown = [frame.pict_type for frame in reader._decoded()]
    with av.open(str(film)) as file:
        kinds = [frame.pict_type for frame in file.decode(video=0)]
    if av.video.frame.PictureType.B in kinds:
        assert len(shown) < len(kinds) * 0.8
    else:
        assert len(shown) == len(kinds)
