"""Which latents a cache keeps: layers, pooled tokens, short numbers and codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from jepa.models.encoders import ConvNet, TimmBackbone, ViT
from jepa.models.frozen import FrozenEncoder
from jepa.models.video import VideoViT
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks.embed import write_cache
from jepa.tasks.features import pool_tokens
from jepa.tasks.latents import Settings
from probes.cache import FeatureCache

NOISE = np.random.default_rng(0).integers(0, 256, (40, 3, 48, 48), dtype=np.uint8)


class Pictures:
    """Two episodes of twenty pictures."""

    def __init__(self, size=48, width=0):
        zeros, ones = (0.0,) * width, (1.0,) * width
        self.size, self.specs = size, Specs(ActionSpec(zeros, ones, zeros, ones), ObservationSpec(size, size))

    def __len__(self):
        return 2

    def length(self, episode):
        return 20

    def read(self, episode, frames, columns=None):
        video = torch.from_numpy(NOISE[20 * episode :][np.asarray(frames)][..., : self.size, : self.size].copy())
        width = self.specs.action.env_width
        return Sample(video=video, action=torch.zeros(len(frames), width) if width else None)


def vit(depth=3, size=48, **given):
    torch.manual_seed(0)
    options = {"size": size, "patch": 8, "dim": 24, "depth": depth, "heads": 2, "frames": 1, "tubelet": 1, **given}
    return FrozenEncoder(VideoViT(**options))


def made(tmp_path, world, name="cache", data=None, **settings):
    given = {"dtype": "float32", "batch": 16} | settings
    splits, data = {"train": [0], "test": [1]}, data or Pictures()
    return FeatureCache(write_cache(world, data, splits, tmp_path / name, Settings(**given)))


@pytest.mark.parametrize("levels", [None, (0, 2)])
@pytest.mark.parametrize("norm", [False, True])
def test_the_last_layer_is_what_the_encoder_gives(levels, norm):
    torch.manual_seed(0)
    video = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    encoder = VideoViT(size=32, frames=4, patch=8, dim=24, depth=3, heads=2, levels=levels, norm=norm).eval()
    assert encoder.depth == 3
    with torch.no_grad():
        found = encoder.layers(video, [0, 1, 2])
        assert found.shape == (2, 2, 3 * 16, 24)
        first, middle, last = found.unflatten(2, (3, 16)).unbind(2)
        assert torch.equal(last, encoder(video)) and not torch.equal(first, last)
        if levels:  # trained levels have norms of their own
            assert torch.equal(first, encoder.latents(video)[..., :24])
        encoder.blocks, encoder.levels = encoder.blocks[:2], None
        encoder.final_norm = encoder.level_norms[-1] if levels else encoder.final_norm
        assert torch.equal(middle, encoder(video)), "the layers before the last are under the last norm"


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_layers_of_encoders_of_images(pool):
    torch.manual_seed(0)
    video = torch.randint(0, 256, (2, 3, 3, 160, 160), dtype=torch.uint8)
    ours = ViT(dim=12, size=160, patch=32, width=16, depth=3, heads=2, pool=pool).eval()
    timms = TimmBackbone("test_vit", size=160, pool=pool).eval()
    with torch.no_grad():
        for encoder in (ours, timms):
            z = encoder(video)
            found = encoder.layers(video, [0, encoder.depth - 1]).unflatten(2, (2, -1))
            assert torch.allclose(found[:, :, 1], z, atol=1e-6) and not torch.allclose(found[:, :, 0], z, atol=1e-2)
            assert found.shape == (2, 3, 2, *z.shape[2:])


def test_layers_and_pools_work_together(tmp_path):
    world, z = vit(), {}
    for pool in ("none", "mean", "space", "time", "grid", "grid_time"):
        cache = made(tmp_path, world, pool, pool=pool, layers=(0, -1))
        z[pool] = cache.features[:]
        expected = {"none": 72, "time": 72, "mean": 2, "space": 2, "grid": 18, "grid_time": 18}[pool]
        assert cache.meta["layers"] == [0, 2] and cache.meta["tokens"] == expected == z[pool].shape[1]
        assert cache.meta["grid"] == {72: [6, 6], 18: [3, 3], 2: None}[expected]
    both = z["none"].reshape(40, 2, 36, 24)
    assert np.allclose(z["mean"], both.mean(2), atol=1e-6)
    quarter = both.reshape(40, 2, 3, 2, 3, 2, 24).mean((3, 5)).reshape(40, 18, 24)
    assert np.allclose(z["grid"], quarter, atol=1e-6)
    video = torch.from_numpy(NOISE[:1])[None]
    assert np.allclose(both[0, 1], world.encoder(video)[0, 0], atol=1e-5)
    assert np.allclose(both[0, 0], world.encoder.layers(video, [0])[0, 0], atol=1e-5)
    with pytest.raises(InputError, match="made from other layers"):
        made(tmp_path, world, "none", layers=(1, 2))
    assert made(tmp_path, world, "none", layers=(-3, 2)).meta["layers"] == [0, 2], "the same layers, counted otherwise"


@pytest.mark.parametrize(
    "world, layers, complaint",
    [
        (vit(), (3,), r"layers=\[3\] of 3 blocks: expected rising numbers from 0 to 2, or from -3 to -1"),
        (vit(), (-4,), r"of 3 blocks"),
        (vit(), (2, 1), r"of 3 blocks"),
        (vit(), (1, -2), r"of 3 blocks"),
        (vit(), (), r"of 3 blocks"),
        (FrozenEncoder(ConvNet(size=48)), (0,), "layers=.0. of a ConvNet, which has none to choose"),
        (FrozenEncoder(TimmBackbone("test_resnet", size=48)), (0, -1), "layers .* of ResNet differ in form"),
    ],
)
def test_layers_that_are_not_there(tmp_path, world, layers, complaint):
    with pytest.raises(InputError, match=complaint):
        made(tmp_path, world, layers=layers)
    assert not list(tmp_path.iterdir())


def test_layers_of_a_model_that_makes_more_of_them(tmp_path):
    class Doubled(FrozenEncoder):
        def encode(self, sample):
            return 2 * super().encode(sample)

    with pytest.raises(InputError, match="layers of a Doubled, which makes more of its encoder's last layer"):
        made(tmp_path, Doubled(vit().encoder), layers=(0,))


def test_odd_sides_average_what_there_is():
    z = torch.arange(15.0).view(1, 1, 15, 1)  # 3 rows of 5
    found = pool_tokens(z, "grid", grid=(3, 5)).flatten().tolist()
    assert found == [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]
    steps = torch.cat([z, z + 2], dim=1)
    assert pool_tokens(steps, "grid_time", grid=(3, 5)).flatten().tolist() == [value + 1 for value in found]
    layers = torch.cat([z, 10 * z], dim=2)
    assert pool_tokens(layers, "grid", 2, (3, 5)).flatten().tolist() == [*found, *(10 * value for value in found)]


def test_a_grid_needs_a_grid(tmp_path):
    with pytest.raises(InputError, match="pool=grid of 1 tokens in no grid: set pool to none, mean, space or time"):
        made(tmp_path, FrozenEncoder(ConvNet(size=48)), pool="grid")


def test_bfloat16_on_the_disk(tmp_path):
    exact, rounded = (made(tmp_path, vit(), dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    stored = np.load(rounded.path / "features-00000.npy")
    assert stored.dtype == np.uint16 and rounded.meta["dtype"] == "bfloat16"
    expected = torch.from_numpy(exact.features[:]).to(torch.bfloat16).float().numpy()
    assert np.array_equal(rounded.features[:], expected)


def test_codes_lose_less_where_they_are_longer_and_are_read_as_numbers(tmp_path):
    whole = made(tmp_path, vit(), "whole").features[:]
    lost, wrong = [], []
    for parts in (2, 6, 12):
        cache = made(tmp_path, vit(), f"{parts}", quantise=parts)
        stored = np.load(cache.path / "features-00000.npy")
        assert stored.shape == (40, 36, parts) and stored.dtype == np.uint8
        assert cache.features.shape == whole.shape and cache.meta["dtype"] == "codes"
        lost.append(cache.meta["quantisation"]["lost"])
        wrong.append(((cache.features[:] - whole) ** 2).sum() / ((whole - whole.mean((0, 1))) ** 2).sum())
        assert 0.2 < wrong[-1] / lost[-1] < 1.5, "what was kept apart tells what the whole cache loses"
    assert lost == sorted(lost, reverse=True) and wrong == sorted(wrong, reverse=True) and wrong[0] > 2 * wrong[2]
    again = made(tmp_path, vit(), "again", quantise=6)
    for name in ("features-00000.npy", "codebooks.npy", "meta.json"):
        assert (again.path / name).read_bytes() == (tmp_path / "6" / name).read_bytes()
    with pytest.raises(InputError, match="made from other quantise"):
        made(tmp_path, vit(), "again", quantise=12)


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"quantise": 5}, "quantise=5 bytes for 24 numbers: expected a divisor, one of 1, 2, 3, 4, 6, 8, 12, 24"),
        ({"quantise": 0}, "quantise=0: expected the bytes of a token"),
        ({"quantise": 6, "pool": "mean"}, "quantise=6 of rows of one token"),
        ({"quantise": 6, "pool": "mean", "layers": (0, 1, 2)}, "quantise has 107 tokens to learn from, expected 256"),
        ({"dtype": "float8"}, "dtype was given 'float8'"),
    ],
)
def test_codes_and_types_that_cannot_be(tmp_path, given, complaint):
    with pytest.raises(InputError, match=complaint):
        made(tmp_path, vit(), **given)
    assert not list(tmp_path.iterdir())


def test_an_encoder_alone_embeds_episodes_with_actions(tmp_path):
    cache = made(tmp_path, vit(), data=Pictures(width=2))
    assert cache.specs.action.env_width == 2 and cache.column("action").shape == (40, 2)


def test_another_frame_of_a_dataset_is_another_dataset(tmp_path):
    class Others(Pictures):
        def read(self, episode, frames, columns=None):
            return Sample(video=super().read(episode, frames).video + 1)

    cache = made(tmp_path, vit())
    with pytest.raises(InputError, match="made from other data"):
        made(tmp_path, vit(), data=Others())
    software = json.loads((cache.path / "meta.json").read_text())["software"]
    assert {"jepa", "torch", "numpy", "timm"} <= set(software)
