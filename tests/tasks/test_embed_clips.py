"""Clips of videos as rows of a cache: which clip is where, what is left out, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jepa.data.crops import Pixels
from jepa.data.video_clips import Failure, VideoSource
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks.embed import embed
from probes.cache import FeatureCache
from probes.linear import LinearProbe
from probes.task import probe


class Index:
    """Twelve videos; video n has the brightness 10 n and moves by n modulo 3."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.columns = {"side": np.arange(12) % 3.0, "level": np.arange(12) * 10.0}
        self.path, self.hash = [f"{row}.mp4" for row in range(12)], [f"hash of {name}/{row}" for row in range(12)]
        self.frames, self.duration, self.decoder = np.full(12, 40), np.full(12, 1.6), np.full(12, "pyav")

    def where(self, row: int) -> Path:
        return Path("/films") / self.name / f"{row}.mp4"


class Clips:
    """Two clips of every row; clip c of row n begins at frame 10 c and is as bright as 10 n + c."""

    def __init__(self, rows, name="one", labels=("side", "level"), broken=(), frames=4) -> None:
        self.source = VideoSource(f"films/{name}", frames=frames, clips=2)
        self.timing, self.pixels, self.short = self.source.timing, Pixels(2), "skip"
        self.index, self.labels, self.broken = Index(name), labels, broken
        self.rows, self.videos = np.repeat(rows, 2), len(rows)

    @property
    def specs(self) -> Specs:
        return Specs(ActionSpec((), (), (), ()), ObservationSpec(2, 2, state_names=self.labels))

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, item: int) -> Path:
        return self.index.where(int(self.rows[item]))

    def views(self, item: int) -> Sample | Failure:
        row, clip, frames = int(self.rows[item]), item % 2, self.timing.frames
        if (row, clip) in self.broken:
            return Failure(str(self.index.where(row)), "the file is broken")
        labels = torch.tensor([self.index.columns[name][row] for name in self.labels], dtype=torch.float32)
        return Sample(
            video=torch.full((frames, 3, 2, 2), 10 * row + clip, dtype=torch.uint8),
            state=labels.expand(frames, -1) if self.labels else None,
            index=torch.tensor([row, 10 * clip]),
            key=torch.tensor(item),
        )


class Films(VideoData):
    """Parts that are given instead of opened."""

    def __init__(self, size=5, **parts) -> None:
        super().__init__([VideoSource("films")], size=2, batch_size=size, workers=0)
        self.given = parts

    def parts(self, part):
        return self.given[part]


class Tubelets(nn.Module):
    """Two frames to a step of three tokens, [B,T/2,3,2]: the brightness, the number of the step and of the token."""

    specs = Specs(ActionSpec((), (), (), ()), ObservationSpec(2, 2))

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.asked = 0

    def encode(self, sample: Sample) -> torch.Tensor:
        assert sample.state is None and torch.is_inference_mode_enabled()
        self.asked += 1
        bright = sample.video[:, ::2].float().mean((2, 3, 4))[..., None, None] * self.weight
        step, token = torch.arange(bright.shape[1])[:, None, None], torch.arange(3.0)[:, None]
        return torch.cat([bright.expand(-1, -1, 3, 1), (10 * step + token).expand(*bright.shape[:2], 3, 1)], dim=-1)


def films(**options) -> Films:
    split = {"train": range(8), "val": (8, 9), "test": (10, 11)}
    return Films(**{name: [Clips(list(rows), **options)] for name, rows in split.items()})


def test_every_clip_is_a_row_and_every_video_an_episode(tmp_path):
    out = embed(Tubelets(), films(), tmp_path / "cache", dtype="float32")
    features, meta = FeatureCache(out).column("features")[:], json.loads((out / "meta.json").read_text())
    bright = 10 * np.repeat(np.arange(12), 2) + np.tile([0, 1], 12)
    assert features.shape == (24, 2 * 3, 2) and np.array_equal(features[..., 0], bright[:, None].repeat(6, 1))
    assert features[7, :, 1].tolist() == [0, 1, 2, 10, 11, 12]
    assert np.array_equal(np.load(out / "offsets.npy"), np.arange(0, 25, 2))
    assert np.array_equal(FeatureCache(out).column("start")[:], np.tile([0, 10], 12))
    labels = np.stack([np.arange(12) % 3, np.arange(12) * 10], 1)
    assert np.array_equal(FeatureCache(out).column("state")[::2], labels)
    assert (meta["steps"], meta["tokens"], meta["width"]) == (2, 3, 2)
    assert meta["splits"] == {"train": [*range(8)], "val": [8, 9], "test": [10, 11]}
    assert meta["files"] == [f"{row}.mp4" for row in range(12)] and meta["left_out"] == []
    assert meta["specs"]["observation"]["state_names"] == ["side", "level"]
    assert "4 frames (consecutive), 2 of a video" in meta["transform"]
    assert {"av", "pillow"} <= set(meta["software"]), "decord was asked for, but by the index it is PyAV that reads"
    assert "decord" not in meta["software"]


@pytest.mark.parametrize("pool, shape", [("space", (2, 1)), ("time", (1, 3)), ("mean", (1, 1))])
def test_pooling_over_the_tokens_of_a_step_or_over_steps(tmp_path, pool, shape):
    whole = FeatureCache(embed(Tubelets(), films(), tmp_path / "whole", dtype="float32")).features[:]
    out = embed(Tubelets(), films(), tmp_path / "pooled", dtype="float32", pool=pool)
    axes = {"space": 2, "time": 1, "mean": (1, 2)}[pool]
    expected = whole.reshape(24, 2, 3, 2).mean(axes, keepdims=True).reshape(24, -1, 2)
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["steps"], meta["tokens"]) == shape and np.allclose(FeatureCache(out).column("features")[:], expected)


def test_probes_see_steps_and_read_the_labels(tmp_path):
    out = embed(Tubelets(), films(), tmp_path / "cache", dtype="float32")
    examples = FeatureCache(out).examples("train", "side", classes=3)
    z, y = examples[[3]]
    assert z.shape == (1, 2, 3, 2) and z[0, 1, 2].tolist() == [11, 12] and y.tolist() == [1]
    report = probe(out, LinearProbe(ridge=1e-8), "level", tmp_path / "report")
    assert report["r2"] > 0.98 and report["episodes"] == {"train": 8, "test": 2}


def test_what_cannot_be_read_is_left_out_and_named(tmp_path, caplog):
    broken = [(3, 0), (3, 1), (5, 1), (10, 0), (10, 1)]
    out = embed(Tubelets(), films(broken=broken), tmp_path / "cache", dtype="float32")
    meta = json.loads((out / "meta.json").read_text())
    assert meta["left_out"] == [f"/films/one/{row}.mp4" for row in (10, 3, 5)]
    assert meta["files"] == [f"{row}.mp4" for row in range(12) if row not in (3, 10)]
    assert meta["splits"] == {"train": [*range(7)], "val": [7, 8], "test": [9]}
    assert np.diff(np.load(out / "offsets.npy")).tolist() == [2, 2, 2, 2, 1, 2, 2, 2, 2, 2]
    features = FeatureCache(out).column("features")[:]
    assert len(features) == 19 and features[-1, 0, 0] == 111, "the header counts the rows that came"
    assert "/films/one/3.mp4" in caplog.text
    baseline = embed(Tubelets(2.0), films(broken=broken[:-1]), tmp_path / "other", dtype="float32")
    with pytest.raises(InputError, match="differs from .* in splits"):
        probe(out, LinearProbe(), "level", tmp_path / "report", baselines={"untrained": baseline})


def test_a_part_of_several_datasets(tmp_path):
    data = Films(train=[Clips([0, 4]), Clips([0, 2], name="two")], test=[Clips([7], name="two")])
    out = embed(Tubelets(), data, tmp_path / "cache", splits=["train", "test"], dtype="float32", limit=3)
    meta = json.loads((out / "meta.json").read_text())
    assert meta["splits"] == {"train": [0, 1, 2], "test": [3]} and meta["source"] == "films/one, films/two"
    assert FeatureCache(out).column("features")[:][::2, 0, 0].tolist() == [0, 40, 0, 70]


def test_the_same_cache_is_kept_and_another_is_not_mixed_in(tmp_path, caplog):
    out = embed(Tubelets(), films(), tmp_path / "cache")
    again = Tubelets()
    assert embed(again, films(), out) == out and not again.asked
    with pytest.raises(InputError, match="made from other weights"):
        embed(Tubelets(2.0), films(), out)
    with pytest.raises(InputError, match="made from other data"):
        embed(Tubelets(), films(name="two"), out)
    with pytest.raises(InputError, match="made from other precision"):
        embed(Tubelets(), films(), out, precision="bfloat16")
    with pytest.raises(InputError, match="made from other data, transform"):
        embed(Tubelets(), films(frames=2), out)


def test_what_does_not_belong_together_is_refused(tmp_path):
    mixed = Films(train=[Clips([0, 1]), Clips([2], name="two", frames=2)])
    with pytest.raises(InputError, match="clips of 4 and 2 frames do not fit into one cache"):
        embed(Tubelets(), mixed, tmp_path / "cache", splits=["train"])
    with pytest.raises(InputError, match=r"has the labels \['side', 'level'\], films/two \[\]"):
        embed(Tubelets(), Films(train=[Clips([0]), Clips([1], "two", ())]), tmp_path / "cache", splits=["train"])
    with pytest.raises(InputError, match="/films/one/1.mp4 belongs to train and to test"):
        embed(Tubelets(), Films(train=[Clips([0, 1])], test=[Clips([1])]), tmp_path / "cache", splits=["train", "test"])
    small = Tubelets()
    small.specs = Specs(ActionSpec((), (), (), ()), ObservationSpec(4, 4))
    with pytest.raises(InputError, match=r"frames \(3, 2, 2\) .* expects \(3, 4, 4\): set data.size"):
        embed(small, films(), tmp_path / "cache")
    everything = [(row, clip) for row in range(12) for clip in range(2)]
    with pytest.raises(InputError, match="none of 16 clips can be read"):
        embed(Tubelets(), films(broken=everything), tmp_path / "cache")
    assert not list(tmp_path.iterdir()), "a refused cache leaves nothing behind"


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch, caplog):
    @dataclass
    class Usage:
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(24 * (12 * 2 + 8 + 8 + 16) - 1))
    with pytest.raises(InputError, match="cache needs 0.0 MB, 0.0 MB are free: make room, set pool or quantise"):
        embed(Tubelets(), films(), tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(24 * (12 * 2 + 8 + 8 + 16)))
    with caplog.at_level("INFO"):
        out = embed(Tubelets(), films(), tmp_path / "cache")
    assert "cache needs 0.0 MB" in caplog.text
    data = sum(FeatureCache(out).column(name).nbytes for name in ("features", "start", "state", "segment", "view"))
    assert data == 24 * (12 * 2 + 8 + 8 + 16)


def test_bfloat16_is_close_and_the_type_is_that_of_the_cache(tmp_path):
    class Linear(Tubelets):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(2, 2)

        def encode(self, sample: Sample) -> torch.Tensor:
            return self.mix(super().encode(sample))

    torch.manual_seed(0)
    world = Linear()
    exact, rounded = (
        FeatureCache(embed(world, films(), tmp_path / name, dtype="float32", precision=name)).features[:]
        for name in ("float32", "bfloat16")
    )
    assert rounded.dtype == np.float32 and not np.array_equal(exact, rounded)
    assert np.allclose(exact, rounded, rtol=0.02, atol=0.5)
