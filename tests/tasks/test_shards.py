"""Columns larger than memory: any rows of any shards, and no more of them in memory than was asked for."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jepa.errors import InputError
from jepa.retrieval import ProductQuantiser
from jepa.tasks.features import decode
from jepa.tasks.shards import Shards, column


def shards(folder, array, sizes):
    parts = np.split(array, np.cumsum(sizes)[:-1])
    for number, part in enumerate(parts):
        np.save(folder / f"features-{number:05d}.npy", part)
    return [folder / f"features-{number:05d}.npy" for number in range(len(parts))]


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "bool"])
def test_any_index_gives_what_the_whole_array_gives(tmp_path, dtype):
    whole = np.random.default_rng(0).normal(size=(23, 3, 4)).astype(dtype)
    held = Shards(shards(tmp_path, whole, [9, 9, 5]))
    assert len(held) == 23 and held.shape == whole.shape and held.dtype == whole.dtype and held.nbytes == whole.nbytes
    random = np.random.default_rng(1)
    for index in (
        slice(None),
        slice(7, 20),
        slice(20, 3, -2),
        slice(5, 5),
        4,
        -1,
        [3, 3, 22, 0],
        [],
        np.array([-1, -23]),
        random.integers(0, 23, (6, 2)),
        random.permutation(23),
        random.random(23) < 0.5,
    ):
        expected = whole[index if not isinstance(index, list) else np.array(index, dtype=np.int64)]
        assert held[index].dtype == whole.dtype and np.array_equal(held[index], expected), index
    assert np.array_equal(np.asarray(held), whole)
    for index in (23, [-24], [0, 99]):
        with pytest.raises(IndexError):
            held[index]
    with pytest.raises(TypeError, match="indexed alone"):
        held[:, 0]


def test_bfloat16_comes_back_as_torch_sees_it(tmp_path):
    import torch

    values = torch.randn(11, 2, 5).to(torch.bfloat16)
    files = shards(tmp_path, values.view(torch.int16).numpy().view(np.uint16), [6, 5])
    held = Shards(files)
    assert held.dtype == np.float32 and np.array_equal(held[:], values.float().numpy())
    assert np.array_equal(held[[10, 2]], values[[10, 2]].float().numpy())


def test_codes_are_decoded_without_faiss_as_faiss_decodes_them(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    quantiser = ProductQuantiser.train(vectors, 4)
    codes = quantiser.encode(vectors)
    held = Shards(shards(tmp_path, codes.reshape(100, 4, 4), [60, 40]), quantiser.codebooks)
    assert held.shape == (100, 4, 12) and held.dtype == np.float32
    assert np.array_equal(held[:].reshape(400, 12), quantiser.decode(codes))
    assert np.array_equal(decode(codes[7:9], quantiser.codebooks), quantiser.decode(codes[7:9]))


def test_damaged_files_are_named(tmp_path):
    whole = np.zeros((10, 2), np.float16)
    files = shards(tmp_path, whole, [5, 5])
    with pytest.raises(InputError, match="has 10 rows of 11: embed again"):
        column(tmp_path, "features", {"shards": 2, "rows": 11, "quantise": None})
    with pytest.raises(InputError, match="features-00002.npy cannot be read"):
        column(tmp_path, "features", {"shards": 3, "rows": 15, "quantise": None})
    data = files[1].read_bytes()
    files[1].write_bytes(data[:-1])
    with pytest.raises(InputError, match="features-00001.npy cannot be read .expected 148 bytes"):
        Shards(files)
    files[1].write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="features-00001.npy cannot be read"):
        Shards(files)
    np.save(files[1], whole.astype(np.float32))
    with pytest.raises(InputError, match="differ in form"):
        Shards(files)
    np.save(files[1], np.array([None, 1]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        Shards(files)


def test_reading_needs_the_memory_of_one_access(tmp_path):
    """A process that reads 320 MB in order and at random, in shards of 32 MB, grows by much less at any time."""
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from jepa.tasks.shards import Shards

        folder, rows = Path(sys.argv[1]), 2**13
        for number in range(10):  # holes take no room on the disk, and memory all the same
            with (folder / f"features-{number:05d}.npy").open("wb") as file:
                head = {"descr": "<f2", "fortran_order": False, "shape": (rows, 8, 256)}
                np.lib.format.write_array_header_1_0(file, head)
                file.truncate(file.tell() + rows * 8 * 256 * 2)
        held = Shards(sorted(folder.glob("*.npy")))
        assert held.nbytes > 320e6 and held[np.arange(0, len(held), 64)].sum() == 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for begin in range(0, len(held), 1024):
            assert not held[begin : begin + 1024].any()
        order = np.random.default_rng(0).permutation(len(held))
        for begin in range(0, len(held), 1024):
            assert not held[order[begin : begin + 1024]].any()
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        mapped = int(status["RssFile"].split()[0])
        print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, mapped)
        """
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, most, _ = map(int, run.stdout.split())
    assert most - before < 48 * 1024, f"grew by {(most - before) / 1024:.0f} MiB"
