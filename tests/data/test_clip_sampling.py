"""Clips by presentation time: the frame that is on screen, whatever the rate of the file."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.data.clip_sampling import ClipTiming, ending, shown
from jepa.errors import InputError

STEADY = np.arange(100) / 25  # 4 s at 25 frames a second
SLIDES = np.array([0.0, 0.1, 0.2, 5.0, 9.0, 9.1, 9.2, 9.3])  # two frames that stay for seconds


def test_neighbouring_frames_are_the_default():
    assert ClipTiming(4).frames_at(STEADY, ending(STEADY), 0, 0.0).tolist() == [0, 1, 2, 3]
    assert ClipTiming(4).frames_at(STEADY, ending(STEADY), 0, 0.999).tolist() == [96, 97, 98, 99]


def test_stride_counts_frames_and_fps_counts_seconds():
    assert ClipTiming(4, stride=5).frames_at(STEADY, ending(STEADY), 0, 0.0).tolist() == [0, 5, 10, 15]
    assert ClipTiming(4, fps=5).frames_at(STEADY, ending(STEADY), 0, 0.0).tolist() == [0, 5, 10, 15]
    assert ClipTiming(3, stride=1).frames_at(SLIDES, ending(SLIDES), 0, 0.5).tolist() == [3, 4, 5]
    assert ClipTiming(10, fps=1).frames_at(SLIDES, ending(SLIDES), 0, 0.0).tolist() == [0, 2, 2, 2, 2, 3, 3, 3, 3, 4]


def test_seconds_are_those_of_the_whole_clip():
    lasting, paced = ClipTiming(8, seconds=2), ClipTiming(8, fps=4)
    assert lasting.frames_at(STEADY, 4.0, 0, 0.3).tolist() == paced.frames_at(STEADY, 4.0, 0, 0.3).tolist()


def test_a_rate_above_that_of_the_file_repeats_frames():
    assert ClipTiming(6, fps=50).frames_at(STEADY, ending(STEADY), 0, 0.0).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 30000 / 1001, 60, 120])
def test_times_that_a_container_rounded_give_every_frame_once(rate):
    times = np.round(np.arange(300) / rate, 3)  # Matroska: milliseconds
    assert ClipTiming(200, fps=rate).frames_at(times, ending(times), 0, 0.0).tolist() == list(range(200))


def test_the_frame_on_screen_is_the_last_that_appeared():
    moments = np.array([-1.0, 0.0, 0.05, 0.0999, 4.9, 5.0, 8.0, 9.25, 99.0])
    expected = [max([0, *np.flatnonzero(SLIDES <= moment + 1e-3)]) for moment in moments]
    assert shown(SLIDES, moments).tolist() == expected


@pytest.mark.parametrize("timing", [{"stride": 3}, {"fps": 25 / 3}])
def test_uniform_places_give_every_beginning_the_same_chance(timing):
    timing = ClipTiming(10, **timing)
    firsts = [timing.frames_at(STEADY, ending(STEADY), 0, place)[0] for place in (np.arange(7300) + 0.5) / 7300]
    begins, counts = np.unique(firsts, return_counts=True)
    assert begins.tolist() == list(range(73)) and counts.min() >= 97 and counts.max() <= 103


@pytest.mark.parametrize("timing", [{}, {"stride": 2}, {"fps": 12.5}])
def test_segments_part_the_beginnings_evenly(timing):
    timing = ClipTiming(8, clips=4, **timing)
    whole = ClipTiming(8, **{name: value for name, value in vars(timing).items() if name in ("fps", "stride")})
    for segment in range(4):
        for place in (0.0, 0.4, 0.99):
            expected = whole.frames_at(STEADY, ending(STEADY), 0, (segment + place) / 4)
            assert timing.frames_at(STEADY, ending(STEADY), segment, place).tolist() == expected.tolist()
    middles = [timing.frames_at(STEADY, ending(STEADY), segment, 0.5)[0] for segment in range(4)]
    assert np.ptp(np.diff(middles)) <= 1 and middles[0] > 0 and middles[3] < 99


@pytest.mark.parametrize("timing", [{}, {"stride": 4}, {"fps": 10}, {"seconds": 5.0}])
def test_behind_the_end_the_last_frame_is_repeated(timing):
    frames = ClipTiming(32, **timing).frames_at(STEADY[:5], ending(STEADY[:5]), 0, 0.7)
    assert len(frames) == 32 and frames[0] == 0 and (np.diff(frames) >= 0).all() and frames[-8:].tolist() == [4] * 8
    assert ClipTiming(3, **timing).frames_at(np.zeros(1), ending(np.zeros(1)), 0, 0.7).tolist() == [0, 0, 0]


def test_what_fits_is_never_repeated():
    for timing, needed in ((ClipTiming(8), 8), (ClipTiming(8, fps=25), 8), (ClipTiming(8, stride=4), 29)):
        for frames in range(1, 60):
            times = np.arange(frames) / 25
            assert timing.fits(frames, ending(times)) == (frames >= needed)
            if frames >= needed:
                clips = [timing.frames_at(times, ending(times), 0, place) for place in (0.0, 0.5, 0.9999)]
                assert {tuple(np.diff(clip)) for clip in clips} == {(timing.hop,) * 7}
    assert ClipTiming(4, fps=2).fits(np.array([9, 9]), np.array([1.4, 1.6])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fps": 4, "stride": 2}, "fps and stride"),
        ({"fps": 0}, "fps of a clip is 0"),
        ({"seconds": float("nan")}, "seconds of a clip is nan"),
        ({"frames": 0}, "frames of a clip is 0"),
        ({"clips": -1}, "clips of a clip is -1"),
    ],
)
def test_nonsense_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        ClipTiming(**given)
