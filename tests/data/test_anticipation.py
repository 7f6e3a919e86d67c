"""Clips that end before an action: where exactly, under either rule, and that nothing behind that is ever looked at."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filmed import film, numbers

from jepa.data.annotations import Annotations, numbered
from jepa.data.anticipation import Anticipation
from jepa.data.crops import Pixels
from jepa.data.index import VideoIndex
from jepa.data.video_clips import VideoClips, VideoSource
from jepa.errors import InputError

RATE, FRAMES = 10, 60  # of the made videos: six seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kitchen")
    for name in ("P01/P01_01", "P02/P02_07"):
        (folder / name).parent.mkdir()
        film(folder / f"{name}.mp4", FRAMES, rate=RATE)
    return folder


def table(path: Path, lines: str, header: str = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class") -> str:
    path.write_text(f"{header}\n{lines}\n")
    return str(path)


ACTIONS = "P02_07,00:00:03.00,00:00:04.50,2,5\nP01_01,00:00:04.00,00:00:05.00,0,9\nP01_01,00:00:02.50,00:00:03.00,2,9"


def clips(folder: Path, path: str, frames: int = 4, fps: float = 5, count: int = 1, **options) -> VideoClips:
    actions = Anticipation(path, **options)
    source = VideoSource(str(folder), frames, fps=fps, clips=count, decoder="pyav", actions=actions)
    return VideoClips(source, pixels=Pixels(32), time_limit=None)


def test_clips_end_a_second_before_the_action_starts(folder, tmp_path):
    held = clips(folder, table(tmp_path / "a.csv", ACTIONS))
    samples = [held[item] for item in range(len(held))]
    # by video, then by time: they end at 1.5, 3 and 2 seconds; four frames at 5 per second are two frames apart
    assert [numbers(sample.video) for sample in samples] == [[7, 9, 11, 13], [22, 24, 26, 28], [12, 14, 16, 18]]
    assert [sample.ahead.item() for sample in samples] == [5, 5, 5]
    assert held.labels == ("start", "stop", "verb", "noun", "action")
    # verbs 0 and 2, nouns 5 and 9, pairs (0, 9), (2, 5), (2, 9)
    assert [sample.state[0].tolist() for sample in samples] == [
        [2.5, 3.0, 1, 1, 2],
        [4.0, 5.0, 0, 1, 0],
        [3.0, 4.5, 1, 0, 1],
    ]
    assert [held.file(item).path for item in range(3)] == ["P01/P01_01.mp4"] * 2 + ["P02/P02_07.mp4"]


def test_the_published_rule_ends_a_second_before_the_action_stops(folder, tmp_path):
    lines = "P01_01,25,48,0,9"
    path = table(tmp_path / "a.csv", lines, "video_id,start_frame,stop_frame,verb_class,noun_class")
    held = clips(folder, path, protocol="published_stop", fps=4)
    # frame 48 - 10, in steps of int(10 / 4) = 2 frames; the action began at frame 25
    assert numbers(held[0].video) == [30, 32, 34, 36]
    half = clips(folder, path, protocol="published_stop", point=(0.5, 0.5), seconds=(0.25, 0.25), fps=4)
    assert numbers(half[0].video) == [26, 28, 30, 32]  # int(25 / 2 + 48 / 2 - int(2.5)) = 34
    assert numbers(clips(folder, path, fps=5)[0].video) == [7, 9, 11, 13]  # and the right one, before frame 15


def test_draws_are_within_the_limits_and_a_function_of_the_key(folder, tmp_path):
    path = table(tmp_path / "a.csv", ACTIONS)
    held = clips(folder, path, frames=1, fps=10, count=64, seconds=(0.25, 1.75))
    assert len(held) == 3 * 64
    ahead = torch.stack([held[item].ahead for item in range(64)]) / 10
    last = np.array([numbers(held[item].video)[0] for item in range(64)])
    assert 0.25 <= ahead.min() < 0.4 and 1.6 < ahead.max() <= 1.75 and len(set(last.tolist())) > 10
    assert (last / RATE < 2.5 - ahead.numpy()).all() and (last / RATE >= 2.5 - ahead.numpy() - 0.2).all()
    assert [held[item].ahead for item in range(64)] == [held[item].ahead for item in range(64)]
    published = clips(folder, path, 1, 10, 64, protocol="published_stop", seconds=(0.25, 1.75), point=(0, 0.25))
    row = 2  # of the second video: from 3 to 4.5 seconds
    places = [numbers(published[64 * row + item].video)[0] + 1 for item in range(64)]
    assert min(places) >= 45 - 0.25 * 15 - 18 and max(places) <= 45 - 2 and max(places) > 38
    with pytest.raises(InputError, match="clips=2 draws of one action would all be the same"):
        clips(folder, path, count=2)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_what_lies_behind_the_end_is_never_seen(folder, tmp_path, decoder):
    """The same video, but for the frames from the end on, gives the same clips."""
    other = tmp_path / "films"
    other.mkdir()
    pixels = np.broadcast_to((np.arange(FRAMES, dtype=np.uint8) * 4)[:, None, None, None], (FRAMES, 48, 64, 3)).copy()
    film(other / "P01_01.mp4", pixels, rate=RATE)
    path = table(tmp_path / "a.csv", "P01_01,00:00:02.50,00:00:03.00,2,9")
    actions = Anticipation(path, seconds=(0.25, 1.75))

    def seen() -> list[list[int]]:
        source = VideoSource(str(other), 4, fps=10, clips=8, decoder=decoder, actions=actions)
        held = VideoClips(source, pixels=Pixels(32), time_limit=None)
        for item in range(len(held)):
            sample = held[item]
            end = 2.5 - sample.ahead.item() / 10
            assert max(numbers(sample.video)) / RATE < end
        return [numbers(held[item].video) for item in range(len(held))]

    before = seen()
    pixels[25:] = 250 - pixels[25:]
    film(other / "P01_01.mp4", pixels, rate=RATE)
    assert seen() == before


def test_a_variable_rate_ends_at_the_same_time(tmp_path):
    """Frame 3 stays for two seconds: clips are cut by time, not by the number of frames."""
    film(tmp_path / "a.mp4", 20, times=[*np.arange(4) / 10, *(np.arange(4, 20) / 10 + 2)], rate=RATE)
    path = table(tmp_path / "a.csv", "a.mp4,3.0,3.5,1", "path,start,stop,act")
    assert numbers(clips(tmp_path, path, frames=4, fps=5)[0].video) == [3, 3, 3, 3]


def test_a_clip_that_would_begin_before_its_video_repeats_the_first_frame(folder, tmp_path, caplog):
    path = table(tmp_path / "a.csv", "P01_01,1.3,2,0,0\nP01_01,1.0,2,0,0\nP01_01,0.5,2,0,0")
    with caplog.at_level(logging.WARNING):
        held = clips(folder, path)
    assert len(held) == 1 and numbers(held[0].video) == [0, 0, 0, 1]  # it ends at 0.3 seconds
    assert "2 of 3 actions" in caplog.text and "before which nothing can be seen: P01_01" in caplog.text
    # as published, it ends before the stop, and never before the first frame
    assert numbers(clips(folder, path, protocol="published_stop")[2].video) == [2, 4, 6, 8]


def test_what_cannot_be_used_is_counted_and_named(folder, tmp_path, caplog):
    lines = ACTIONS + "\nP09_01,1,2,0,9\nP01_01,4,3,0,9\nP01_01,7,8,0,9\nP02_07,nan,8,0,9"
    with caplog.at_level(logging.WARNING):
        assert len(clips(folder, table(tmp_path / "a.csv", lines))) == 3
    for told in (
        "1 of 7 actions", "whose video is missing or cannot be read: P09_01",
        "2 of 7 actions", "that end before they begin: P01_01, P02_07",
        "that begin behind the end of their video: P01_01",
    ):  # fmt: skip
        assert told in caplog.text
    with pytest.raises(InputError, match="none of 1 actions .* 'P09_01', whose video is missing.*correct the table"):
        clips(folder, table(tmp_path / "b.csv", "P09_01,1,2,0,9"))


def test_classes_are_numbered_as_in_training_and_new_ones_follow(folder, tmp_path, caplog):
    train = table(tmp_path / "train.csv", ACTIONS)
    test = table(tmp_path / "test.csv", "P01_01,3,4,2,9\nP01_01,3,4,0,5\nP01_01,3,4,7,9\nP01_01,3,4,0,5")
    columns, counts = numbered(Annotations.read(train), Annotations.read(test))
    assert counts == {"verb": 2, "noun": 2, "action": 3}
    assert {name: column.tolist() for name, column in columns.items()} == {
        "verb": [1, 0, 2, 0],
        "noun": [1, 0, 1, 0],
        "action": [2, 3, 4, 3],
    }
    with caplog.at_level(logging.INFO):
        held = clips(folder, test, train=train, answers=("action",))
    assert held.labels == ("start", "stop", "action") and "3 of 4 actions" in caplog.text
    assert [held[item].state[0, 2].item() for item in range(4)] == [2, 3, 4, 3]


def test_tables_of_our_own(folder, tmp_path):
    """By path, in seconds, with names as classes; as .csv or .parquet."""
    columns = {
        "path": ["P01/P01_01.mp4", "P02/P02_07.mp4"],
        "start": [2.5, 3.0],
        "stop": [3.0, 4.0],
        "act": [10, 9],
        "tool": ["spoon", "knife"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    lines = "\n".join(",".join(map(str, row)) for row in zip(*columns.values()))
    for path in (str(tmp_path / "a.parquet"), table(tmp_path / "a.csv", lines, ",".join(columns))):
        held = clips(folder, path)
        assert held.labels == ("start", "stop", "act", "tool")
        assert [held[item].state[0].tolist() for item in range(2)] == [[2.5, 3, 1, 1], [3, 4, 0, 0]]
        assert numbers(held[0].video) == [7, 9, 11, 13]


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("name,start,stop,verb", "a,1,2,3", "expected one of path or video_id"),
        ("path,begin,stop,verb", "a,1,2,3", "does not say when actions begin"),
        ("path,start,stop", "a,1,2", "names no classes"),
        ("path,start,stop,verb", "a,one,2,3", "no time"),
        ("path,start,stop,verb", "a,1,2,3\nb,1,2,", "names no verb of action 2"),
        ("path,start,stop,verb", "a,1,2,3\nb,1", "line 3 has 2 values, its header names 4"),
        ("path,start,stop,verb", "", "holds no action"),
        ("path,start,stop,verb, verb", "a,1,2,3,4", "names a column twice, 'verb'"),
        ("path,start,stop,kind", "P01/P01_01.mp4,3,4,1", "cannot be named 'kind'"),
    ],
)
def test_tables_that_say_too_little(folder, tmp_path, header, lines, message):
    with pytest.raises(InputError, match=message):
        clips(folder, table(tmp_path / "a.csv", lines, header))


def test_options_that_cannot_be(folder, tmp_path):
    path = table(tmp_path / "a.csv", ACTIONS)
    for options, message in (
        ({"seconds": (2.0, 1.0)}, "seconds of an anticipation"),
        ({"seconds": (-1.0, 1.0)}, "seconds of an anticipation"),
        ({"point": (0.0, 0.0)}, "published_stop"),
        ({"protocol": "published_stop", "point": (0.5, 2.0)}, "point is"),
        ({"protocol": "stop"}, "protocol"),
        ({"answers": ("tool",)}, "tool"),
    ):
        with pytest.raises(InputError, match=message):
            clips(folder, path, **options)
    with pytest.raises(InputError, match="does not exist"):
        clips(folder, str(tmp_path / "b.csv"))
    with pytest.raises(InputError, match="need fps or seconds"):
        VideoSource(str(folder), 4, actions=Anticipation(path))
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        clips(folder, str(tmp_path / "broken.parquet"))


def test_two_files_of_one_name(folder, tmp_path):
    film(tmp_path / "P01_01.mp4", 30)
    (tmp_path / "again").mkdir()
    film(tmp_path / "again" / "P01_01.mp4", 30)
    index = VideoIndex.open(tmp_path, "pyav", workers=1)
    with pytest.raises(InputError, match="both named 'P01_01'"):
        Anticipation(table(tmp_path / "a.csv", ACTIONS)).index(index)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("start", [2.5, None], "start and stop of .* hold what is no time"),
        ("act", [1, None], "names no act of action 2"),
        ("act", ["pour", None], "names no act of action 2"),
        (None, [], "holds no action; expected a line for each"),
    ],
)
def test_values_that_a_parquet_table_lacks(folder, tmp_path, column, values, message):
    columns = {"path": ["P01/P01_01.mp4"] * 2, "start": [2.5, 3.0], "stop": [3.0, 4.0], "act": [1, 0]}
    columns = {name: [] for name in columns} if column is None else columns | {column: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        clips(folder, str(tmp_path / "a.parquet"))
