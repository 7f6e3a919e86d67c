"""Clips of video files: the right frames in the right part of the picture, and broken files told apart."""

from __future__ import annotations

import logging
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filmed import film, numbers

from jepa.data import video_clips
from jepa.data.clip_loading import EvaluationLoader, collate
from jepa.data.crops import Pixels
from jepa.data.video_clips import Failure, VideoClips, VideoSource
from jepa.errors import InputError
from jepa.schema import Sample

KEYS = [int(key) for key in np.random.default_rng(0).integers(-(2**63), 2**63, size=64)]


def clips(path: Path, frames: int = 4, size: int | tuple[int, int] = 32, **options) -> VideoClips:
    reading = {name: options.pop(name) for name in ("short", "time_limit", "rows") if name in options}
    pixels = Pixels(size, flip=options.pop("flip", True))
    source = VideoSource(str(path), frames, **{"decoder": "pyav"} | options)
    return VideoClips(source, pixels=pixels, **{"time_limit": None} | reading)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a: 60 steady frames; b: 30; c: 12 frames, the third of which stays for two seconds."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "a.mp4", 60)
    film(folder / "b.mp4", 30)
    film(folder / "c.mp4", 12, times=[*np.arange(3) / 25, *(np.arange(3, 12) / 25 + 2)])
    return folder


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_evaluation_shows_the_middle_of_every_segment(folder, decoder):
    held = clips(folder, stride=3, clips=2, decoder=decoder, rows=[0, 1])
    samples = [held[item] for item in range(len(held))]
    assert [numbers(sample.video) for sample in samples] == [
        [12, 15, 18, 21],
        [38, 41, 44, 47],
        [5, 8, 11, 14],
        [15, 18, 21, 24],
    ]
    assert [sample.index.tolist() for sample in samples] == [[0, 12], [0, 38], [1, 5], [1, 15]]
    assert held.rows.tolist() == [0, 0, 1, 1] and held.where(2) == folder / "b.mp4"
    assert all(sample.video.shape == (4, 3, 32, 32) and sample.video.dtype == torch.uint8 for sample in samples)


def test_a_variable_rate_shows_what_was_on_screen(folder):
    held = clips(folder, frames=8, fps=4, rows=[2])
    times = np.array([*np.arange(3) / 25, *(np.arange(3, 12) / 25 + 2)])
    begins = np.arange(0, 0.75, 0.001)  # the file lasts 2.48 s, the clip 1.75 s to its last frame
    possible = {tuple(np.searchsorted(times, begin + np.arange(8) / 4, side="right") - 1) for begin in begins}
    shown = [tuple(numbers(sample.video)) for sample in (held[0], *(held.draw(0, key) for key in KEYS))]
    assert set(shown) <= possible and len(set(shown)) > 8


def test_random_clips_are_a_function_of_the_key(folder):
    held, again = clips(folder, rows=[0]), pickle.loads(pickle.dumps(clips(folder, rows=[0])))
    drawn = [held.draw(0, key) for key in KEYS]
    assert all(torch.equal(again.draw(0, key).video, one.video) for key, one in zip(KEYS[::-1], drawn[::-1]))
    firsts = [int(one.index[1]) for one in drawn]
    assert len(set(firsts)) > 25 and min(firsts) < 8 and max(firsts) > 48
    assert all(numbers(one.video) == list(range(first, first + 4)) for one, first in zip(drawn, firsts))
    assert [int(one.key) for one in drawn] == KEYS


def test_random_clips_stay_in_their_segment(folder):
    held = clips(folder, clips=3, rows=[0])
    for segment in range(3):
        firsts = [int(held.draw(segment, key).index[1]) for key in KEYS]
        assert 19 * segment <= min(firsts) and max(firsts) < 19 * (segment + 1) and np.ptp(firsts) > 12


def test_all_frames_of_a_clip_are_cut_and_mirrored_alike(tmp_path):
    ramp = np.zeros((8, 48, 64, 3), np.uint8) + np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None]
    film(tmp_path / "ramp.mp4", ramp)
    held = clips(tmp_path, frames=8)
    mirrored, spans = 0, set()
    for key in KEYS:
        rows = held.draw(0, key).video.float().mean((1, 2))  # [T,w]
        assert (rows - rows[:1]).abs().max() < 4
        mirrored += bool(rows[0, 0] > rows[0, -1])
        spans.add(round(float((rows[0, 0] - rows[0, -1]).abs())))
    assert 16 < mirrored < 48 and len(spans) > 16
    held = clips(tmp_path, frames=8, flip=False)
    assert all(one[0, 0, 0, 0] < one[0, 0, 0, -1] for one in (held.draw(0, key).video for key in KEYS))
    assert held[0].video[0, 0, 0, 0] < held[0].video[0, 0, 0, -1]


def test_keys_of_evaluation_depend_on_the_row_alone(folder):
    every, some = clips(folder, clips=2, rows=[0, 1]), clips(folder, clips=2, rows=[1], size=16)
    assert [int(every[item].key) for item in (2, 3)] == [int(some[item].key) for item in (0, 1)]
    assert len({int(every[item].key) for item in range(4)}) == 4


def test_short_videos_are_left_out_or_repeat_their_end(folder, caplog):
    with caplog.at_level(logging.WARNING):
        held = clips(folder, frames=40)
    assert held.rows.tolist() == [0]
    assert "2 of 3 videos" in caplog.text and "b.mp4" in caplog.text and "c.mp4" in caplog.text
    held = clips(folder, frames=40, short="repeat")
    assert numbers(held[1].video) == [*range(30), *[29] * 10] and len(held) == 3
    assert numbers(held.draw(1, KEYS[0]).video) == numbers(held[1].video)
    with pytest.raises(InputError, match="none of 3 videos .* 61 frames"):
        clips(folder, frames=61)


def test_a_file_that_breaks_is_a_failure_not_another_clip(folder, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())
    held = clips(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    film(tmp_path / "b.mp4", 2)  # became shorter than the index says
    first, second = held[0], held[1]
    assert isinstance(first, Failure) and first.file == str(tmp_path / "a.mp4") and not first.fatal
    assert isinstance(second, Failure) and "shorter than its clip" in second.reason
    with pytest.raises(InputError):
        held.draw(0, KEYS[0])


def test_a_decoder_that_hangs_is_cut_off(folder, monkeypatch):
    real = video_clips.open_video

    def hanging(path, *rest):
        if str(path).endswith("a.mp4"):
            time.sleep(600)
        return real(path, *rest)

    monkeypatch.setattr(video_clips, "open_video", hanging)
    held, failed = clips(folder, time_limit=3.0), {}
    begun = time.monotonic()
    loader = EvaluationLoader(held, 3, failed, num_workers=1)
    ((batch,),) = list(loader)
    assert time.monotonic() - begun < 60
    assert batch.index[:, 0].tolist() == [1, 2] and list(failed) == [str(folder / "a.mp4")]


def test_clips_of_several_lengths_become_one_batch_each(folder):
    short, long = clips(folder, frames=2), clips(folder, frames=6)
    items = [long[0], Failure("x.mp4", "why"), short[1], short[0], long[2], long[1]]
    batch = collate(items)
    assert [sample.video.shape for sample in batch.samples] == [(2, 2, 3, 32, 32), (3, 6, 3, 32, 32)]
    assert batch.failures == [items[1]]
    assert torch.equal(batch.samples[1].video[1], items[4].video)
    assert batch.samples[1].key.tolist() == [int(items[place].key) for place in (0, 4, 5)]
    assert collate([items[1]]).samples == []


@pytest.mark.parametrize(
    ("options", "said"),
    [({"weight": 0.0}, "weight"), ({"decoder": "decrod"}, "did you mean 'decord'"), ({"fps": 2, "stride": 1}, "fps")],
)
def test_sources_check_themselves(options, said):
    with pytest.raises(InputError, match=said):
        VideoSource("films", **options)


def test_unknown_labels_are_refused(folder):
    with pytest.raises(InputError, match="unknown label 'speed'"):
        clips(folder, labels=("speed",))


def test_items_are_samples(folder):
    assert isinstance(clips(folder)[0], Sample)


@pytest.mark.parametrize("tall", [False, True])
def test_views_of_a_clip_are_its_ends_and_its_middle(tmp_path, tall):
    """Three stripes along the long side, a third each; frames get brighter."""
    stripes = np.repeat(np.array([40, 100, 160], dtype=np.uint8), 32)
    picture = np.broadcast_to(stripes[:, None] if tall else stripes, (96, 32) if tall else (32, 96))
    film(tmp_path / "a.mp4", (picture + 4 * np.arange(12, dtype=np.uint8)[:, None, None])[..., None].repeat(3, 3))
    held = clips(tmp_path, frames=3, clips=2, views=3, size=32)
    assert len(held) == 2, "views are not items: training and validation never see them"
    for item in range(2):
        sample, centre = held.views(item), held[item]
        assert sample.video.shape == (9, 3, 32, 32) and torch.equal(sample.index, centre.index)
        apart = sample.video.unflatten(0, (3, 3))
        assert torch.equal(apart[1], centre.video)
        expected = np.array([40, 100, 160])[:, None] + 4 * (int(sample.index[1]) + np.arange(3))
        assert np.abs(apart.float().mean((2, 3, 4)).numpy() - expected).max() < 4
    assert torch.equal(clips(tmp_path, frames=3, size=32).views(0).video, clips(tmp_path, frames=3, size=32)[0].video)
    with pytest.raises(InputError, match="views of .* is 2, expected 1 or 3"):
        VideoSource(str(tmp_path), views=2)


def test_a_loader_that_goes_on_may_find_nothing_more_to_read(folder, tmp_path):
    film(tmp_path / "a.mp4", 20)
    held = clips(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"broken")
    with pytest.raises(InputError, match="none of 1 clips can be read"):
        list(EvaluationLoader(held, 1, {}))
    assert not list(EvaluationLoader(held, 1, {}, read=4))
