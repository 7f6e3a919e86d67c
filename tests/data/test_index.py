"""What the index says of files of every kind, and what of it survives a file, a change, and a hanging decoder."""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from footage import FRAMES, KINDS, MISREAD, film, kind, numbers, real_clips, sound, turned, two_streams
from PIL import Image

from jepa.data import decord, probe
from jepa.data.decoders import open_video
from jepa.data.index import NAME, VideoIndex
from jepa.data.listing import label_table, scanned
from jepa.data.parquet import read_table, write_table
from jepa.data.strings import Strings
from jepa.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, good and bad, in two folders."""
    folder = tmp_path_factory.mktemp("footage")
    (folder / "below").mkdir()
    for name in KINDS:
        kind(folder / "below", name)
    turned(folder / "turned.mp4", folder / "below" / "constant.mp4")
    whole = film(folder / "whole.mp4", container={"movflags": "faststart"}, frames=60).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: int(0.7 * len(whole))])
    whole = film(folder / "whole.mkv", frames=60).read_bytes()
    (folder / "truncated.mkv").write_bytes(whole[: int(0.7 * len(whole))])
    (folder / "headless.mp4").write_bytes((folder / "below" / "constant.mp4").read_bytes()[:900])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mov").write_text("no video at all\n" * 50)
    sound(folder / "sound.mp4")
    film(folder / "one.mp4", frames=1)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "image.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "notes.txt").write_text("not of the set")
    (folder / ".hidden.mp4").write_bytes(b"")
    (folder / "below" / "again").symlink_to(folder)
    return folder


BROKEN = {
    "truncated.mp4": "is truncated: ",
    "truncated.mkv": "is truncated: ",
    "headless.mp4": "cannot be opened as a video: ",
    "zero.mp4": "is empty: ",
    "text.mov": "cannot be opened as a video: ",
    "sound.mp4": "has no video stream: only audio",
    "broken.jpg": "cannot be read as an image: ",
}


@pytest.fixture(scope="module")
def index(folder: Path) -> VideoIndex:
    return VideoIndex.open(folder, workers=2)


def row(index: VideoIndex, name: str):
    return next(index.file(n) for n in range(len(index)) if Path(index.path[n]).name == name)


def test_every_file_has_a_row(folder: Path, index: VideoIndex) -> None:
    assert list(index.path) == sorted(index.path)
    assert {Path(path).name for path in index.path} == {
        *KINDS, *BROKEN, "turned.mp4", "whole.mp4", "whole.mkv", "one.mp4", "image.png"
    }  # fmt: skip
    for number in range(len(index)):
        file, content = index.file(number), index.where(number).read_bytes()
        assert file.bytes == len(content) and file.hash == hashlib.sha256(content).hexdigest()


def test_files_that_cannot_be_read_say_why(index: VideoIndex) -> None:
    said = {Path(index.path[n]).name: index.reason[n] for n in range(len(index)) if index.reason[n]}
    assert said.keys() == BROKEN.keys()
    for name, reason in BROKEN.items():
        assert said[name].startswith(reason), said[name]
    assert len(index.readable) == len(index) - len(BROKEN) and index.readable.dtype == np.int64
    assert not index.frames[np.setdiff1d(np.arange(len(index)), index.readable)].any()


def test_rows_say_what_the_files_hold(index: VideoIndex) -> None:
    codecs = {"hevc.mp4": "hevc", "mpeg4.avi": "mpeg4", "vp9.webm": "vp9", "av1.mp4": "av1"}
    for name in KINDS:
        file, uneven = row(index, name), name.startswith("uneven")
        assert (file.kind, file.frames, file.height, file.width) == ("video", FRAMES, 64, 96)
        assert file.codec == codecs.get(name, "h264") and file.variable == uneven
        assert file.fps == pytest.approx(FRAMES / file.duration)
        assert uneven or (file.duration, file.fps) == pytest.approx((4, 10))
    assert (row(index, "turned.mp4").height, row(index, "turned.mp4").width) == (96, 64)
    image = row(index, "image.png")
    assert (image.kind, image.frames, image.duration, image.codec) == ("image", 1, 0, "png")
    assert row(index, "one.mp4").frames == 1


def test_pyav_is_named_for_what_decord_does_not_read(index: VideoIndex) -> None:
    taken = {name: row(index, name).decoder for name in KINDS}
    assert {name for name, decoder in taken.items() if decoder == "pyav"} == {"av1.mp4", "open.mp4"}
    assert set(taken.values()) == {"decord", "pyav"}
    wanted = np.array([39, 12, 11, 0, 25, 24])
    for number in index.readable[index.kind[index.readable] == "video"]:
        if Path(index.path[number]).name in KINDS:
            with open_video(index.where(number), str(index.decoder[number])) as reader:
                assert numbers(reader.decode(wanted)) == wanted.tolist()


def test_pyav_is_named_where_decord_shows_other_frames(tmp_path: Path) -> None:
    for name in MISREAD:
        kind(tmp_path, name)
    two_streams(tmp_path / "two.mp4")
    kind(tmp_path, "constant.mp4")
    index = VideoIndex.open(tmp_path, workers=2)
    wanted = np.array([1, 5, 20, 21, 38, 30, 0])
    for name in index.path:
        assert (found := row(index, name)).frames == FRAMES
        assert found.decoder == ("decord" if name == "constant.mp4" else "pyav"), name
        with open_video(tmp_path / name, found.decoder) as reader:
            assert numbers(reader.decode(wanted)) == wanted.tolist(), name
            assert numbers(reader.decode(wanted[:1])) == [1], name


def test_other_frames_are_told_from_other_colours(tmp_path: Path, monkeypatch) -> None:
    path = kind(tmp_path, "constant.mp4")
    assert probe.probe(path, "decord").decoder == "decord"
    real = decord.FileReader.decode
    greyer = lambda pixels: np.where(pixels < 128, pixels + 3, pixels - 3)  # noqa: E731
    monkeypatch.setattr(decord.FileReader, "decode", lambda reader, frames: greyer(real(reader, frames)))
    assert probe.probe(path, "decord").decoder == "decord"  # every frame is converted in the same other way
    monkeypatch.setattr(decord.FileReader, "decode", lambda reader, frames: real(reader, np.minimum(frames + 1, 39)))
    assert probe.probe(path, "decord").decoder == "pyav"  # every frame but the last is its successor
    monkeypatch.setattr(decord.FileReader, "decode", lambda reader, frames: real(reader, frames)[:, ::2])
    assert probe.probe(path, "decord").decoder == "pyav"


def test_the_choice_of_a_decoder_holds(folder: Path, index: VideoIndex, tmp_path: Path) -> None:
    assert VideoIndex.open(folder / "whole.mp4", "pyav").decoder.tolist() == ["pyav"]
    index.write(tmp_path / "i.parquet")
    chosen = VideoIndex.open(tmp_path / "i.parquet", "pyav")
    videos = chosen.readable[chosen.kind[chosen.readable] == "video"]
    assert set(chosen.decoder[videos]) == {"pyav"} and row(chosen, "image.png").decoder == "pillow"
    with pytest.raises(InputError, match="did you mean 'pyav'"):
        VideoIndex.open(folder, "pyaw")


def test_an_index_is_written_and_read_back(index: VideoIndex, tmp_path: Path) -> None:
    labelled = index.with_labels({"speed": np.arange(len(index)) / 4, "class": np.arange(len(index))})
    for out in (tmp_path / "i.parquet", index.folder.parent / "beside.parquet"):
        labelled.write(out)
        read = VideoIndex.open(out)
        assert read.labels == ("speed", "class") and len(read) == len(index)
        for name in ("speed", "class", "frames", "duration", "variable", "codec", "decoder"):
            assert read.columns[name].dtype == labelled.columns[name].dtype or name in ("codec", "decoder")
            assert np.array_equal(read.columns[name], labelled.columns[name])
        assert [read.where(n).resolve() for n in range(len(read))] == [
            index.where(n).resolve() for n in range(len(index))
        ]
        assert list(read.reason) == list(index.reason)
        assert not list(out.parent.glob(".*.part"))
    assert read.path[0].startswith(index.folder.name + "/"), "below the folder of the index, paths are relative"
    os.remove(out)
    with pytest.raises(InputError, match="cannot be named 'frames'"):
        index.with_labels({"frames": np.zeros(len(index))})
    with pytest.raises(InputError, match="expected numbers"):
        index.with_labels({"name": np.array(["a"] * len(index))})


def test_a_folder_with_an_index_is_probed_only_where_it_changed(tmp_path: Path, monkeypatch, caplog) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        film(tmp_path / name, frames=5)
    VideoIndex.open(tmp_path).with_labels({"digit": np.array([1.0, 2.0, 3.0])}).write(tmp_path / NAME)
    asked: list[str] = []
    real = probe.probe_all
    spying = lambda root, files, *args: asked.extend(files) or real(root, files, *args)  # noqa: E731
    monkeypatch.setattr("jepa.data.index.probe_all", spying)
    again = VideoIndex.open(tmp_path)
    assert not asked and not caplog.records and again.columns["digit"].tolist() == [1, 2, 3]
    (tmp_path / "a.mp4").unlink()
    film(tmp_path / "b.mp4", frames=9)
    film(tmp_path / "d.mp4", frames=7)
    with caplog.at_level(logging.WARNING):
        changed = VideoIndex.open(tmp_path)
    assert asked == ["b.mp4", "d.mp4"] and len(caplog.records) == 1
    assert "2 files new or changed, 2 gone or changed" in caplog.text
    found = {changed.path[n]: (int(changed.frames[n]), changed.columns["digit"][n]) for n in range(len(changed))}
    assert found.keys() == {"b.mp4", "c.mp4", "d.mp4"} and found["c.mp4"] == (5, 3.0)
    assert found["b.mp4"][0] == 9 and np.isnan(found["d.mp4"][1])


def test_published_lists(tmp_path: Path) -> None:
    (tmp_path / "my films").mkdir()
    film(tmp_path / "my films" / "a b.mp4", frames=5)
    film(tmp_path / "c.mp4", frames=6)
    (tmp_path / "list.csv").write_text(f"my films/a b.mp4 3\n\n{tmp_path / 'c.mp4'} 0\ngone.mp4 7\n")
    index = VideoIndex.open(tmp_path / "list.csv")
    assert index.frames.tolist() == [5, 6, 0] and index.labels == ("label",)
    assert index.columns["label"].tolist() == [3, 0, 7] and index.readable.tolist() == [0, 1]
    assert index.reason[2].startswith("cannot be opened: No such file")
    (tmp_path / "marked.csv").write_text("c.mp4 -2\n", encoding="utf-8-sig")  # as spreadsheets write it
    assert VideoIndex.open(tmp_path / "marked.csv").columns["label"].tolist() == [-2]
    for line in ("b.mp4", "b.mp4 --1", "b.mp4 ²", "b.mp4 1.5", "b.mp4 99999999999999999999"):
        (tmp_path / "bad.csv").write_text(f"a.mp4 1\n{line}\n")
        with pytest.raises(InputError, match="bad.csv, line 2: expected a path"):
            VideoIndex.open(tmp_path / "bad.csv")


def test_labels_of_a_table(tmp_path: Path, caplog) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"path,x,digit\nb.mp4,1.5,4\n{tmp_path}/a.mp4,-1,2\ngone.mp4,0,0\n")
    columns = label_table(table, ["a.mp4", "b.mp4", "c.mp4"], tmp_path)
    assert columns["x"].tolist()[:2] == [-1, 1.5] and columns["digit"].tolist()[:2] == [2, 4]
    assert np.isnan(columns["x"][2]) and "1 of 3 lines" in caplog.text and "1 of 3 files have no label" in caplog.text
    faults = {
        "x,y\n": "expected the header",
        "path,x\na.mp4,one\n": "line 2: could not convert",
        "path,x\nz.mp4,1\n": "none of",
        "path,x\na.mp4,1,2\n": "2 labels, the header names 1",
    }
    for text, message in faults.items():
        table.write_text(text)
        with pytest.raises(InputError, match=message) as raised:
            label_table(table, ["a.mp4"], tmp_path)
        assert "\n" not in str(raised.value)
    table.write_text("path,x\na.mp4,1\n", encoding="utf-16")
    with pytest.raises(InputError, match="is not UTF-8"):
        label_table(table, ["a.mp4"], tmp_path)


def test_what_is_no_file_is_counted_and_named(tmp_path: Path, caplog) -> None:
    film(tmp_path / "good.mp4", frames=5)
    os.mkfifo(tmp_path / "pipe.mp4")  # to open it would wait for ever
    (tmp_path / "gone.mp4").symlink_to("nothing.mp4")
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"")
    index = VideoIndex.open(tmp_path, workers=1, time_limit=5.0)
    said = dict(zip(index.path, index.reason))
    assert said.pop("good.mp4") == "" and said.pop("pipe.mp4").startswith("is no regular file")
    assert said.keys() == {"gone.mp4", "self.mp4"} and all(r.startswith("cannot be opened: ") for r in said.values())
    assert "caf" in caplog.text and "its name is not UTF-8; rename it" in caplog.text and "3 of 4 files" in caplog.text
    index.write(tmp_path / NAME)
    caplog.clear()
    assert len(VideoIndex.survey(tmp_path)) == 4 and "out of date" not in caplog.text


def test_a_disk_that_is_mounted_in_a_folder_belongs_to_it(tmp_path: Path, monkeypatch) -> None:
    """The roots of two disks mostly have the same number of a file."""
    (tmp_path / "disk").mkdir()
    film(tmp_path / "disk" / "a.mp4", frames=5)
    real = Path.stat

    class About:
        def __init__(self, path: Path) -> None:
            self.st_ino, self.st_dev = 2, 1 + (path.name == "disk")

    monkeypatch.setattr(Path, "stat", lambda path, **o: About(path) if path.name != "a.mp4" else real(path, **o))
    assert [*scanned(tmp_path)] == ["disk/a.mp4"]


def test_a_folder_that_cannot_be_entered_is_named(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "locked").mkdir()
    film(tmp_path / "a.mp4", frames=5)
    real = os.scandir

    def denied(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", denied)
    assert [*scanned(tmp_path)] == ["a.mp4"] and "locked is left out: it cannot be opened" in caplog.text


def test_an_index_with_other_columns_is_refused(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", frames=5)
    index = VideoIndex.open(tmp_path)
    wrong = {"frames": ["five"], "duration": ["long"], "reason": [None], "width": [np.nan], "variable": ["no"]}
    for name, values in wrong.items():
        with pytest.raises(InputError, match=f"column .*{name}.* of the index .*write it with"):
            VideoIndex(index.columns | {name: values}, tmp_path)


def test_values_that_no_run_can_have(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", frames=5)
    with pytest.raises(InputError, match="workers is -1, expected at least 0"):
        VideoIndex.open(tmp_path, workers=-1)
    for seconds in (float("inf"), 1e9, 0.0, float("nan")):
        with pytest.raises(InputError, match="the time limit is"):
            VideoIndex.open(tmp_path, time_limit=seconds)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        VideoIndex.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="none of 0 files"):
        VideoIndex.open(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="none of 1 files .*cannot be opened as a video: Invalid data"):
        VideoIndex.open(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="is no video, image, .parquet index or .csv list"):
        VideoIndex.open(tmp_path / "a.txt")
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        VideoIndex.open(tmp_path / "a.parquet")
    write_table(tmp_path / "b.parquet", {"path": ["a"]}, "something else")
    with pytest.raises(InputError, match="is 'something else', expected 'video index 1'"):
        VideoIndex.open(tmp_path / "b.parquet")


def hanging(path: Path, decoder: str):
    """Stands for the probe of a file whose decoder never returns, or dies."""
    if path.name == "hang.mp4":
        time.sleep(600)
    if path.name == "crash.mp4":
        faulthandler.disable()  # or pytest writes where it happened
        os.abort()
    return REAL(path, decoder)


REAL = probe.probe


def test_files_that_hang_or_crash_the_decoder_are_given_up(tmp_path: Path, monkeypatch, caplog) -> None:
    for name in ("hang.mp4", "crash.mp4", "good.mp4"):
        film(tmp_path / name, frames=5)
    monkeypatch.setattr(probe, "probe", hanging)
    hanging.__module__, hanging.__qualname__ = "jepa.data.probe", "probe"  # what the message to the child names
    index = VideoIndex.open(tmp_path, workers=2, time_limit=4.0)
    assert row(index, "hang.mp4").reason == "hangs the decoder: more than 4 seconds"
    assert row(index, "crash.mp4").reason == "crashes the decoder: SIGABRT"
    assert row(index, "good.mp4").frames == 5 and "hang.mp4" in caplog.text and "2 of 3 files" in caplog.text


def test_an_interrupted_probe_ends_at_once(tmp_path: Path, monkeypatch) -> None:
    film(tmp_path / "hang.mp4", frames=5)
    film(tmp_path / "good.mp4", frames=5)
    monkeypatch.setattr(probe, "probe", hanging)

    def interrupt(futures):
        next(iter(real(futures)))
        raise KeyboardInterrupt

    real = probe.as_completed
    monkeypatch.setattr(probe, "as_completed", interrupt)
    hanging.__module__, hanging.__qualname__ = "jepa.data.probe", "probe"
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        VideoIndex.open(tmp_path, workers=2, time_limit=300.0)
    assert time.monotonic() - begun < 60, "the hanging file was waited for"


def test_real_clips() -> None:
    for clip in real_clips():
        index = VideoIndex.open(clip)
        file = index.file(0)
        assert file.codec == "h264" and file.decoder == "decord" and not file.variable and file.frames > 100
        assert index.where(0) == clip


def test_strings_are_rows_of_text() -> None:
    texts = ["", "a", "ä/ö.mp4", "", "\udcff broken"]
    column = Strings.of(texts)
    assert list(column) == texts and len(column) == 5 and column[-1] == texts[-1]
    assert column.lengths.tolist()[0] == 0 and (column.lengths == 0).tolist() == [True, False, False, True, False]
    with pytest.raises(IndexError):
        column[5]
    assert len(Strings.of([])) == 0


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"n": np.arange(3)}, "test")
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_table(path, {"n": np.arange(9)}, "test")
    assert read_table(path, "test")["n"].tolist() == [0, 1, 2] and os.listdir(tmp_path) == ["t.parquet"]


def test_scanning_names_sizes(folder: Path) -> None:
    found = scanned(folder)
    assert found["zero.mp4"] == 0 and found["below/constant.mp4"] > 0 and ".hidden.mp4" not in found
