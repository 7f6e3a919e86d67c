"""PyAV leaves out what nobody needs, and what comes out is the same to the last bit."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from footage import KINDS, kind, turned

from jepa.data import pyav
from jepa.data.decoders import open_video

FRAMES, HEIGHT, WIDTH = 40, 96, 128
CODED = {  # options of x264 -> most frames that wait for one that is stored before them and shown after them
    "bframes=3:b-pyramid=none": 1,
    "bframes=3:b-pyramid=normal": 2,
    "bframes=0": 0,
    "bframes=2:open-gop=1": 1,
    "bframes=3:tff=1": 2,
}
# top, left, height and width: odd ones, along the edges, all, and a single pixel
BOXES = [(11, 23, 41, 57), (0, 0, 17, 33), (55, 90, 41, 38), (0, 0, 96, 128), (8, 16, 64, 64), (95, 127, 1, 1)]
FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "nv12")


def write(path, options, times=range(FRAMES), pixels="yuv420p"):
    """A texture that moves, shown at ``times`` in units of 1/25 s."""
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8 + FRAMES, 3), dtype=np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=25, options={"x264-params": options})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        for number, time in enumerate(times):
            picture = np.ascontiguousarray(texture[:, 3 * number : 3 * number + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return path


@pytest.fixture(scope="module", params=CODED)
def film(request, tmp_path_factory):
    """All kinds of frames that refer to each other."""
    return write(tmp_path_factory.mktemp("film") / "film.mp4", f"{request.param}:b-adapt=0:scenecut=0:keyint=15")


@pytest.fixture(scope="module", params=("mp4", "mkv"))
def uneven(request, tmp_path_factory):
    """Frames at a variable rate."""
    times = np.random.default_rng(2).integers(1, 9, FRAMES).cumsum().tolist()
    return write(tmp_path_factory.mktemp("uneven") / f"uneven.{request.param}", "bframes=3:keyint=15", times)


def everything(path):
    """All frames, decoded from the beginning."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def check(path):
    """All ways to ask for frames give those of a decoder that leaves out nothing."""
    true = everything(path)
    random = np.random.default_rng(1)
    with open_video(path, "pyav") as reader:
        for number in range(FRAMES):
            np.testing.assert_array_equal(reader.decode(np.array([number])), true[[number]])
        for stride in (2, 3, 4, 7):
            frames = np.arange(random.integers(stride), FRAMES, stride)
            np.testing.assert_array_equal(reader.decode(frames), true[frames])
        frames = random.integers(0, FRAMES, 25)  # any order, with repeats
        np.testing.assert_array_equal(reader.decode(frames), true[frames])
        assert reader.decode(np.zeros(0, np.int64)).shape == (0, HEIGHT, WIDTH, 3)
        return reader


def test_what_is_left_out_changes_nothing(film):
    check(film)


def test_frames_of_a_variable_rate_are_told_by_their_times(uneven):
    assert check(uneven)._sparing


def kinds(path):
    """Presentation time and type of every frame, in the order of presentation."""
    with av.open(str(path)) as file:
        return [(frame.pts, frame.pict_type, frame.interlaced_frame) for frame in file.decode(video=0)]


def test_frames_that_nobody_needs_are_not_decoded(film):
    stored = kinds(film)
    with open_video(film, "pyav") as reader:
        ends = reader.table.pts[[0, FRAMES - 1]].tolist()
        shown = [frame.pict_type for frame in reader._decoded(0, ends)]
    if av.video.frame.PictureType.B in [kind for _, kind, _ in stored]:
        assert len(shown) < len(stored) * 0.8
    else:
        assert len(shown) == len(stored)


def test_nothing_behind_the_last_wanted_frame_is_decoded(film):
    with av.open(str(film)) as file:
        order = [packet.pts for packet in file.demux(video=0) if packet.size]
    with open_video(film, "pyav") as reader:
        for number in (0, 7, 20):
            time = int(reader.table.pts[number])
            shown = [frame.pts for frame in reader._decoded(0, [time])]
            assert time in shown and len(shown) <= order.index(time) + 1


def test_the_frames_that_wait_are_counted_from_the_packets(request, film):
    with open_video(film, "pyav") as reader:
        assert reader.table.depth == CODED[request.node.callspec.params["film"]]


def test_a_frame_that_sparing_loses_is_found_by_decoding_all(film, monkeypatch):
    true, frames = everything(film), np.arange(1, FRAMES, 3)
    with open_video(film, "pyav") as reader:
        decoded, lost = reader._decoded, int(reader.table.pts[22])
        losing = lambda *args: (frame for frame in decoded(*args) if frame.pts != lost)  # noqa: E731
        monkeypatch.setattr(reader, "_decoded", losing)
        np.testing.assert_array_equal(reader.decode(frames), true[frames])
        assert not reader._sparing  # another run of it would be in vain
        np.testing.assert_array_equal(reader.decode(frames), true[frames])


def test_interlaced_frames_are_decoded_with_all_others(request, film):
    interlaced = any(marked for _, _, marked in kinds(film))
    assert interlaced == ("tff" in request.node.callspec.params["film"])
    with open_video(film, "pyav") as reader:
        assert reader._sparing
        reader.decode(np.array([5]))
        assert reader._sparing is not interlaced


def test_a_trial_tells_no_more_than_the_packets(tmp_path, monkeypatch):
    for name in KINDS:
        path = kind(tmp_path, name)
        with open_video(path, "pyav") as reader, monkeypatch.context() as patch:
            patch.setattr(pyav, "UNTRIED", {})
            with open_video(path, "pyav") as tried:
                assert tried._tried and reader.codec == tried.codec and reader.table[2:] == tried.table[2:]
                for told, found in zip((reader.times, *reader.table[:2]), (tried.times, *tried.table[:2])):
                    np.testing.assert_array_equal(told, found)
                assert reader._tried == (not name.endswith((".mp4", ".mkv")) or name in ("hevc.mp4", "av1.mp4"))


@pytest.mark.parametrize("pixels", FORMATS)
def test_a_region_is_that_of_the_whole_frame(pixels, tmp_path):
    path = write(tmp_path / "film.mp4", "bframes=2:keyint=15", pixels=pixels)
    frames = np.array([3, 30, 3, 17])
    with open_video(path, "pyav") as reader:
        true = reader.decode(frames)
        for top, left, height, width in BOXES:
            found = reader.decode(frames, lambda *_, box=(top, left, height, width): box)
            np.testing.assert_array_equal(found, true[:, top : top + height, left : left + width])
        assert reader.decode(frames[:0], lambda *_: BOXES[0]).shape == (0, 41, 57, 3)


def test_a_region_of_a_turned_file_is_as_shown(tmp_path):
    path = turned(tmp_path / "turned.mp4", write(tmp_path / "film.mp4", "bframes=2"))
    with open_video(path, "pyav") as reader:
        true = reader.decode(np.array([0, 39]))
        assert true.shape == (2, WIDTH, HEIGHT, 3)
        found = reader.decode(np.array([0, 39]), lambda height, width: (height - 30, width - 20, 30, 20))
        np.testing.assert_array_equal(found, true[:, -30:, -20:])


def test_colours_of_a_region_are_those_that_the_file_names(tmp_path):
    path = write(tmp_path / "film.mp4", "bframes=0:colormatrix=bt709:fullrange=on")
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 2)
        true = frame.to_ndarray(format="rgb24")
    with open_video(path, "pyav") as reader:
        np.testing.assert_array_equal(reader.decode(np.array([0]), lambda *_: BOXES[0])[0], true[11:52, 23:80])
