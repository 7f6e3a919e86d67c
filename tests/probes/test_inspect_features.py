"""``jepa inspect features``: what is said of latents is true, streamed as in one piece, and the pictures show it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.data.clip_sampling import ClipTiming
from jepa.errors import InputError
from jepa.metrics import rankme
from jepa.tasks.embed import write_cache
from jepa.tasks.latents import Settings
from probes import inspect_features as module
from probes import pooled
from probes.cache import FeatureCache
from probes.inspect_features import inspect_features
from probes.neighbour_picture import _middle, nearest, size
from probes.pooled import Pooled


@pytest.fixture
def vectors(cache_path):
    """Every row, its tokens averaged."""
    return torch.from_numpy(FeatureCache(cache_path).features[:]).float().mean(1)


@pytest.mark.parametrize("memory", [2**26, 4 * 8 * 33])
def test_the_numbers_are_those_of_all_rows_at_once(cache_path, vectors, memory, monkeypatch):
    monkeypatch.setattr(pooled, "MEMORY", memory)
    told = inspect_features(cache_path)
    assert told["rows"] == len(vectors) == 480 and told["vector"] == "4 wide, the mean of 2 tokens"
    assert told["rankme"] == pytest.approx(float(rankme(vectors)), rel=1e-4)
    assert told["rankme_uncentred"] == pytest.approx(float(rankme(vectors, centre=False)), rel=1e-4)
    norm = vectors.norm(dim=1)
    assert told["norm"]["highest"] == pytest.approx(float(norm.max())) and told["norm"]["mean"] == pytest.approx(
        float(norm.mean()), rel=1e-6
    )
    unit = torch.nn.functional.normalize(vectors, dim=1).double()
    off = (unit @ unit.T).sum() - len(unit)
    assert told["cosine"] == pytest.approx(float(off) / (480 * 479), abs=1e-6)
    assert told["std"]["lowest"] == pytest.approx(float(vectors.std(0, correction=0).min()), rel=1e-5)
    assert sum(told["variance_shares"]) == pytest.approx(1) and told["dead"] == 0
    # two pixels move, so two directions are all that there is
    assert told["variance_shares"][2] < 1e-6 and told["participation_ratio"] <= 2
    text = str(told)
    assert "480 frames" in text and f"{told['rankme']:.2f} of 4" in text and "CKA" not in text


def test_dead_dimensions_are_counted(world, episodes, splits, tmp_path):
    with torch.no_grad():
        world.weight[:, 1:3] = 0
    path = write_cache(world, episodes, splits, tmp_path / "dead", settings=Settings(dtype="float32"))
    assert inspect_features(path)["dead"] == 2
    with torch.no_grad():
        world.weight[:] = 0
    path = write_cache(world, episodes, splits, tmp_path / "point", settings=Settings(dtype="float32"))
    told = inspect_features(path, against=path, out=tmp_path / "out")
    assert told["dead"] == 4 and told["rankme"] == 1 and told["cka"] is None
    assert json.loads((tmp_path / "out/features.json").read_text())["cka"] is None


def test_caches_are_alike_up_to_a_rotation(cache_path, world, episodes, splits, tmp_path):
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        world.weight.copy_(3 * torch.einsum("ed,ndp->nep", rotation, world.weight))
    turned = write_cache(world, episodes, splits, tmp_path / "turned", settings=Settings(dtype="float32"))
    told = inspect_features(cache_path, against=turned)
    assert told["cka"] == pytest.approx(1, abs=1e-5) and told["cka_debiased"] == pytest.approx(1, abs=1e-5)
    assert "(debiased 1.0000)" in str(told)
    other = write_cache(world, episodes, {"train": [0, 1], "test": [2, 3]}, tmp_path / "other")
    with pytest.raises(InputError, match="differs from .* in splits"):
        inspect_features(cache_path, against=other)


@pytest.mark.parametrize("memory", [2**26, 4 * 8 * 33])
def test_neighbours_are_the_nearest_of_other_episodes(cache_path, vectors, memory, monkeypatch):
    monkeypatch.setattr(pooled, "MEMORY", memory)
    cache = FeatureCache(cache_path)
    found = nearest(Pooled(cache), 6, 5)
    assert found.query.shape == (6,) and found.row.shape == found.similarity.shape == (6, 5)
    owner = np.searchsorted(cache.offsets, np.arange(480), side="right") - 1
    unit = torch.nn.functional.normalize(vectors, dim=1)
    for query, rows, cosines in zip(found.query, found.row, found.similarity):
        cosine = (unit @ unit[query]).numpy()
        best = {e: cosine[owner == e].max() for e in set(owner) - {owner[query]}}
        assert np.allclose(cosines, sorted(best.values(), reverse=True)[:5], atol=1e-6)
        assert len({owner[query], *owner[rows]}) == 6 and np.allclose(cosine[rows], cosines, atol=1e-6)


def test_the_command_writes_numbers_a_spectrum_and_a_picture(jepa, workshop, tmp_path):
    cache, other = workshop.features("two_rooms"), workshop.features("two_rooms", "untrained")
    answer = jepa("inspect", "features", cache, f"--against={other}", f"--out={tmp_path}", "--queries=3",
                  "--neighbours=4")  # fmt: skip
    assert answer.code == 0 and "rankme" in answer.out and "linear CKA with" in answer.out
    told = json.loads((tmp_path / "features.json").read_text())
    assert len(told["neighbours"]) == 3 and 0 <= told["cka"] <= 1 and told["rows"] == 300
    drawing = ElementTree.parse(tmp_path / "spectrum.svg").getroot()
    assert len(drawing.findall("{*}path[@class='line s1']")) == 2  # its key and its line
    with Image.open(tmp_path / "neighbours.png") as image:
        image.load()
        assert image.format == "PNG" and image.size == size(3, 4)
        pixels = np.asarray(image)
    # the first query's frame stands as it is in the data, enlarged
    from jepa.data.hdf5 import Hdf5Episodes

    held = FeatureCache(cache)
    frame = Hdf5Episodes(workshop.data("two_rooms")).read(int(held.numbers[0]), [int(held.offsets[1]) // 2]).video[0]
    shown = np.asarray(Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((96, 96), Image.Resampling.NEAREST))
    assert np.array_equal(pixels[24:120, 8:104], shown)


def test_without_the_data_there_is_no_picture_but_all_else(cache_path, workshop, tmp_path):
    told = inspect_features(cache_path, out=tmp_path / "a")
    assert "no picture" in told["written"]["neighbours"] and "--source" in str(told)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"features.json", "spectrum.svg"}
    told = inspect_features(cache_path, out=tmp_path / "b", source=workshop.data("two_rooms"))
    assert "is not the data of" in told["written"]["neighbours"]


def test_clips_show_their_middle_frame(jepa, workshop, tmp_path):
    cache = workshop.features("moving_digits")
    assert jepa("inspect", "features", cache, f"--out={tmp_path}", "--neighbours=99").code == 0
    with Image.open(tmp_path / "neighbours.png") as image:
        assert image.size == size(8, 11)  # of 12 videos
    times = np.arange(20) / 10
    assert _middle(ClipTiming(frames=4), times, 5) == 7 and _middle(ClipTiming(frames=4, stride=3), times, 5) == 11
    assert _middle(ClipTiming(frames=4, fps=5), times, 5) == 9 and _middle(ClipTiming(frames=16), times, 15) == 19


def test_bad_input_is_named(jepa, cache_path, tmp_path, world, episodes):
    assert "is not a feature cache" in jepa("inspect", "features", tmp_path).complaint()
    assert "queries=0" in jepa("inspect", "features", cache_path, "--queries=0").complaint()
    assert "holds 1 layers" in jepa("inspect", "features", cache_path, "--layer=3").complaint()
    one = write_cache(world, episodes, {"train": [0]}, tmp_path / "one")
    assert "embed more" in jepa("inspect", "features", one, f"--out={tmp_path / 'out'}").complaint()


@pytest.mark.parametrize("name", ["file", "file/deep"])
def test_a_place_for_nothing_is_told_before_the_cache_is_read(cache_path, tmp_path, monkeypatch, name):
    monkeypatch.delattr(module, "_measured")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        inspect_features(cache_path, out=tmp_path / name)
