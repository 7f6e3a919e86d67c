from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from jepa.retrieval import FrameIndex, ProductQuantiser


@pytest.fixture
def frames():
    z = torch.randn(600, 3, 5, generator=torch.Generator().manual_seed(0))
    return z, torch.stack([torch.arange(600) // 30 + 4, torch.arange(600) % 30], dim=1)


def test_finds_the_exact_frame_and_the_order_of_brute_force(frames):
    z, ids = frames
    index = FrameIndex().add(z[:200], ids[:200]).add(z[200:], ids[200:])
    found, distance = index.search(z, 3)
    assert torch.equal(found[:, 0], ids) and distance[:, 0].max() < 1e-2
    queries = torch.randn(4, 7, 3, 5, generator=torch.Generator().manual_seed(1))
    found, distance = index.search(queries, 3)
    exact = torch.cdist(queries.flatten(2).double(), z.flatten(1).double()).topk(3, largest=False)
    assert found.shape == (4, 7, 3, 2) and torch.equal(found, ids[exact.indices])
    assert torch.allclose(distance.double(), exact.values, atol=1e-4)


def test_storyboard_of_a_slightly_wrong_dream(frames):
    z, ids = frames
    dream = z[40:60] + 0.01
    assert FrameIndex().add(z, ids).storyboard(dream) == [tuple(row) for row in ids[40:60].tolist()]


def test_mean_tokens_ignore_the_order_of_tokens(frames):
    z, ids = frames
    found, _ = FrameIndex(tokens="mean").add(z, ids).search(z.flip(1))
    assert torch.equal(found[:, 0], ids)


def test_beyond_the_exact_size_clusters_still_find_frames(frames):
    z, ids = frames
    index = FrameIndex(exact=300, searched=0.3).add(z[:300], ids[:300])
    exact = index.search(z[:300])[0]
    assert torch.equal(exact[:, 0], ids[:300])
    index.add(z[300:], ids[300:])
    assert torch.equal(index.search(z)[0][:, 0], ids)
    again = FrameIndex(exact=300, searched=0.3).add(z, ids)
    queries = torch.randn(50, 3, 5)
    assert torch.equal(index.search(queries)[0], again.search(queries)[0])


@pytest.mark.parametrize("exact", [1000, 100])
def test_round_trip(frames, tmp_path, exact):
    z, ids = frames
    index = FrameIndex(exact=exact).add(z, ids)
    index.save(tmp_path / "index.npz")
    loaded = FrameIndex.load(tmp_path / "index.npz")
    queries = torch.randn(50, 3, 5)
    for mine, theirs in zip(index.search(queries, 2), loaded.search(queries, 2)):
        assert torch.equal(mine, theirs)
    assert len(loaded.add(z[:5], ids[:5])) == 605


def test_a_failed_save_keeps_the_old_file(frames, tmp_path, monkeypatch):
    z, ids = frames
    FrameIndex().add(z, ids).save(tmp_path / "index.npz")

    def full(*args, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError):
        FrameIndex().add(z[:9], ids[:9]).save(tmp_path / "index.npz")
    assert len(FrameIndex.load(tmp_path / "index.npz")) == 600
    assert [path.name for path in tmp_path.iterdir()] == ["index.npz"]


def test_bad_files_are_named(frames, tmp_path):
    z, ids = frames
    path = tmp_path / "index.npz"
    with pytest.raises(InputError, match="index.npz is not a frame index"):
        FrameIndex.load(path)
    FrameIndex().add(z, ids).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a frame index"):
        FrameIndex.load(path)
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:])
    with pytest.raises(InputError, match="is not a frame index"):
        FrameIndex.load(path)
    np.save(path.open("wb"), np.zeros(3))
    with pytest.raises(InputError, match="is not a frame index"):
        FrameIndex.load(path)
    np.savez(path, meta=np.array([{}], dtype=object), frames=ids.numpy(), index=np.zeros(3, np.uint8))
    with pytest.raises(InputError, match="is not a frame index"):
        FrameIndex.load(path)


def test_bad_queries_are_named(frames):
    z, ids = frames
    with pytest.raises(InputError, match="k=1 nearest of 0 frames"):
        FrameIndex().search(z)
    index = FrameIndex().add(z, ids)
    with pytest.raises(InputError, match="k=601"):
        index.search(z, 601)
    with pytest.raises(InputError, match="latents of 10 numbers in an index of 15"):
        index.search(z[:, :2])
    with pytest.raises(InputError, match="NaN"):
        index.search(z * float("nan"))
    with pytest.raises(InputError, match="expected"):
        index.add(z, ids[:5])


@pytest.mark.parametrize("order", ["torch, faiss", "faiss, torch"])
def test_two_openmp_runtimes_live_together(order):
    """Either order of imports, two threads in each library: no crash, no hang, and the right answer."""
    program = f"""
import {order}
torch.set_num_threads(2); faiss.omp_set_num_threads(2)
x = torch.randn(8000, 32)
index = faiss.IndexFlatL2(32)
for _ in range(2):
    (x @ x.T[:, :500]).exp().sum()
    index.reset(); index.add(x.numpy())
    assert (index.search(x[:300].numpy(), 1)[1][:, 0] == range(300)).all()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_codes_of_a_product_quantiser():
    random = np.random.default_rng(0)
    centres = random.normal(size=(2, 16, 3))
    vectors = np.concatenate([centres[part, random.integers(0, 16, 2000)] for part in range(2)], axis=1)
    made = ProductQuantiser.train(vectors, 2)
    codes = made.encode(vectors)
    assert codes.shape == (2000, 2) and codes.dtype == np.uint8 and made.codebooks.shape == (2, 256, 3)
    assert np.allclose(made.decode(codes), vectors, atol=1e-2) and made.error(vectors) < 1e-6, "16 values of each part"
    again = ProductQuantiser(made.codebooks)
    assert np.array_equal(again.encode(vectors), codes) and np.array_equal(again.decode(codes), made.decode(codes))
    assert np.array_equal(ProductQuantiser.train(vectors, 2).codebooks, made.codebooks)
    noise = random.normal(size=(4000, 8)).astype(np.float32)
    errors = [ProductQuantiser.train(noise[:2000], parts).error(noise[2000:]) for parts in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and 0 < errors[-1] < 0.01 < errors[0] < 1


@pytest.mark.parametrize(
    "vectors, parts, complaint",
    [
        (np.zeros((300, 6)), 4, "quantise=4 bytes for 6 numbers: expected a divisor, one of 1, 2, 3, 6"),
        (np.zeros((255, 6)), 3, "255 tokens to learn from, expected 256"),
        (np.full((300, 6), np.nan), 3, "NaN or infinity"),
    ],
)
def test_what_cannot_be_quantised(vectors, parts, complaint):
    with pytest.raises(InputError, match=complaint):
        ProductQuantiser.train(vectors, parts)
