"""A run that is cut off, anywhere and by anything, goes on: the cache is that of a run that was not, byte by byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from embedding import SMALL, Clips, Films, Mixer, embed_clips, embed_frames  # noqa: E402

from jepa.errors import InputError  # noqa: E402
from jepa.tasks import construction  # noqa: E402
from jepa.tasks.construction import Column, Construction  # noqa: E402
from jepa.tasks.embed import embed  # noqa: E402
from probes.cache import FeatureCache  # noqa: E402

LOST = [(1, 0), (1, 1), (3, 1), (8, 1)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(construction, "MEGABYTE", SMALL)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(kind, out, after, lost=()):
    program, lost = Path(__file__).parent / "embedding.py", ",".join(f"{row}.{clip}" for row, clip in lost)
    run = subprocess.run([sys.executable, program, kind, out, str(after), lost], capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert not out.exists()
    return json.loads((out.with_name(f".{out.name}.partial") / "progress.json").read_text())


def test_frames_go_on_after_a_kill(tmp_path):
    whole = embed_frames(tmp_path / "whole", Mixer())
    done = killed("frames", tmp_path / "cache", after=6)
    assert 0 < done["shards"] and done["rows"] == done["items"] == done["shards"] * 10
    world = Mixer()
    out = embed_frames(tmp_path / "cache", world)
    assert files(out) == files(whole) and world.asked < 1 + 84 / 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "whole"]
    cache = FeatureCache(out)
    assert cache.meta["rows"] == 84 and cache.meta["shards"] == 9 and cache.features.shape == (84, 4, 24)


def test_clips_go_on_after_a_kill_and_what_was_lost_stays_lost(tmp_path):
    whole = embed_clips(tmp_path / "whole", Mixer(), LOST)
    assert json.loads((whole / "meta.json").read_text())["left_out"] == [f"/films/{n}.mp4" for n in (1, 3, 8)]
    done = killed("clips", tmp_path / "cache", 9, LOST)
    assert done["shards"] and {int(item) // 6 for item in done["left_out"]} == {1, 3}
    out = embed_clips(tmp_path / "cache", Mixer(), LOST[3:])  # the others can be read again
    assert files(out) == files(whole)


def test_no_write_is_a_bad_moment(tmp_path, monkeypatch):
    """The process dies before, or right after, every single file that takes its name."""
    monkeypatch.setattr(construction, "MEGABYTE", 2 * SMALL)
    monkeypatch.setattr(os, "fsync", lambda number: None)
    whole = files(embed_clips(tmp_path / "whole", Mixer(), LOST, pool="time"))
    replace, rename = os.replace, Path.rename
    count = 0
    monkeypatch.setattr(Construction, "__exit__", lambda self, *error: self._lock.close())

    def dying(place, after):
        def step(function, *names):
            nonlocal count
            count += 1
            if count == place and not after:
                raise KeyboardInterrupt
            function(*names)
            if count == place and after:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", lambda *names: step(replace, *names))
        monkeypatch.setattr(Path, "rename", lambda *names: step(rename, *names))

    place, ended = 0, False
    while not ended:
        place += 1
        for after in (False, True):
            count = 0
            dying(place, after)
            out = tmp_path / "cache"
            try:
                embed_clips(out, Mixer(), LOST, pool="time")
                ended = True
            except KeyboardInterrupt:
                dying(0, after)
                embed_clips(out, Mixer(), LOST, pool="time")
            assert {name: data for name, data in files(out).items() if name not in ("lock", "progress.json")} == whole
            shutil.rmtree(out)
    assert place > 20


def interrupted(out, after=7, **settings):
    class Stopping(Mixer):
        def encode(self, sample):
            if self.asked == after:
                raise KeyboardInterrupt
            return super().encode(sample)

    with pytest.raises(KeyboardInterrupt):
        embed_frames(out, Stopping(), **settings)
    return out.with_name(f".{out.name}.partial")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"world": Mixer(1)}, "weights"),
        ({"pool": "mean"}, "pool"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"precision": "bfloat16"}, "precision"),
        ({"quantise": 3}, "dtype, quantise"),
    ],
)
def test_what_was_begun_is_finished_by_the_same(tmp_path, change, named):
    partial = interrupted(tmp_path / "cache")
    before = files(partial)
    assert not [name for name in before if name.endswith(".new")]
    with pytest.raises(InputError, match=f"begun with other {named}: finish it with these, or remove that folder"):
        embed_frames(tmp_path / "cache", **{"world": Mixer(), **change})
    assert files(partial) == before
    shutil.rmtree(partial)
    assert embed_frames(tmp_path / "cache", **{"world": Mixer(), **change}).is_dir()


def test_other_versions_are_not_mixed(tmp_path, monkeypatch):
    interrupted(tmp_path / "cache")
    monkeypatch.setattr("jepa.tasks.embed_frames.software", lambda libraries: {"torch": "1.0"})
    with pytest.raises(InputError, match="begun with other software"):
        embed_frames(tmp_path / "cache", Mixer())


def test_what_has_no_whole_shard_is_not_kept(tmp_path):
    interrupted(tmp_path / "cache", after=2)
    assert not list(tmp_path.iterdir())


def test_two_processes_never_write_one_cache(tmp_path):
    class Meanwhile(Mixer):
        def encode(self, sample):
            with pytest.raises(InputError, match="is being written by another process: wait for it"):
                embed_frames(tmp_path / "cache", Mixer())
            return super().encode(sample)

    assert files(embed_frames(tmp_path / "cache", Meanwhile())) == files(embed_frames(tmp_path / "whole", Mixer()))


def test_a_full_disk_keeps_what_is_done(tmp_path, monkeypatch):
    append, room = Column.append, 4 * 24 * 2 * 23

    def full(self, rows):
        nonlocal room
        room -= rows.nbytes
        if room < 0:
            raise OSError(28, "No space left on device")
        append(self, rows)

    monkeypatch.setattr(Column, "append", full)
    complaint = "no room for the feature cache .*: free some and repeat the command, its 20 rows"
    with pytest.raises(InputError, match=complaint):
        embed_frames(tmp_path / "cache", Mixer())
    monkeypatch.setattr(Column, "append", append)
    assert files(embed_frames(tmp_path / "cache", Mixer())) == files(embed_frames(tmp_path / "whole", Mixer()))


def test_the_disk_need_is_that_of_what_is_left(tmp_path, monkeypatch, caplog):
    interrupted(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 1_000))
    complaint = r"needs 0.0 MB \(0.0 MB still\), 0.0 MB are free: make room, set pool or quantise"
    with pytest.raises(InputError, match=complaint):
        embed_frames(tmp_path / "cache", Mixer())
    with pytest.raises(InputError, match="shard_mb=0: expected at least 1"):
        Construction(tmp_path / "cache", {}, {}, 0)


def test_segments_and_views_are_columns(tmp_path):
    cache = FeatureCache(embed_clips(tmp_path / "cache", Mixer(), LOST, dtype="float32"))
    view, segment = cache.column("view")[:], cache.column("segment")[:]
    assert view.tolist() == [0, 1, 2] * (len(view) // 3) and len(view) == (18 - 4) * 3
    assert segment[:9].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert np.diff(cache.offsets).tolist() == [6, 6, 3, 6, 6, 6, 6, 3]
    assert cache.column("state").shape == (42, 1)
    world, clip = Mixer().eval(), Clips([2]).views(1)
    rows = np.flatnonzero((cache.column("state")[:][:, 0] == 2) & (segment == 1))
    expected = world.encode(type(clip)(clip.video.unflatten(0, (3, 2)))).flatten(1, 2).detach()
    assert np.allclose(cache.features[rows], expected, atol=1e-6)
    assert "3 views along the long side" in cache.meta["transform"]


def test_sources_agree_on_their_views(tmp_path):
    data = Films()
    data.given["test"][0].source.views = 1
    with pytest.raises(InputError, match="films has 3 views, films 1: expected the same"):
        embed(Mixer(), data, tmp_path / "cache", ["train", "test"])


def test_numbers_are_never_cut_to_the_type_of_those_before(tmp_path):
    column = Column(tmp_path / "map-00000.npy", np.ones((1, 4), np.uint8))
    with pytest.raises(AssertionError, match="rows of float32 after rows of uint8"):
        column.append(np.full((1, 4), 0.5, np.float32))
    column.discard()
