"""The nearest neighbours of some frames, each from another episode, and a picture of them: what latents find alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from jepa.data.clip_sampling import ClipTiming, shown
from jepa.data.decoders import open_video
from jepa.data.module import EpisodeData
from jepa.errors import InputError
from jepa.tasks.storyboards import thumbnail
from probes.cache import FeatureCache
from probes.pooled import Pooled

SIDE, GAP, CAPTION, HEAD = 96, 8, 30, 24  # pixels: of a frame, between frames, below a frame, above all
INK, SOFT, PAPER = "#1a1d21", "#5a636e", "#fbfaf7"


@dataclass(frozen=True)
class Neighbours:
    """Rows of a cache and those nearest to them."""

    query: NDArray[np.int64]  # [Q]
    row: NDArray[np.int64]  # [Q,k], nearest first
    similarity: NDArray[np.float32]  # [Q,k] cosines

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"row": int(query), "nearest": row.tolist(), "cosine": [round(float(value), 6) for value in cosine]}
            for query, row, cosine in zip(self.query, self.row, self.similarity)
        ]


def nearest(pooled: Pooled, queries: int, k: int) -> Neighbours:
    """The rows in the middle of ``queries`` episodes that lie evenly in the cache, and the k other episodes whose
    nearest row is nearest to each, by cosine; fewer where there are not so many.

    One pass; in memory is the nearest row of every episode.
    """
    offsets = pooled.cache.offsets
    held = np.flatnonzero(np.diff(offsets))  # a video may have no clip that could be read
    if len(held) < 2:
        raise InputError(f"{pooled.cache.path} holds {len(held)} episode: neighbours are of others, embed more")
    chosen = held[np.unique(np.linspace(0, len(held) - 1, min(queries, len(held))).round().astype(np.int64))]
    query = (offsets[chosen] + offsets[chosen + 1]) // 2
    unit = F.normalize(pooled.rows(query), dim=1)
    best = np.full((len(query), len(offsets) - 1), -np.inf, dtype=np.float32)
    place = np.zeros(best.shape, dtype=np.int64)
    for start, rows in pooled:
        cosine = (unit @ F.normalize(rows, dim=1).T).numpy()
        owner = np.searchsorted(offsets, np.arange(start, start + len(rows)), side="right") - 1
        first = np.flatnonzero(np.diff(owner, prepend=-1))  # of each episode in the batch
        for begin, end in zip(first, [*first[1:], len(rows)]):
            top = cosine[:, begin:end].argmax(1)
            value, episode = cosine[np.arange(len(query)), begin + top], owner[begin]
            better = value > best[:, episode]
            best[better, episode], place[better, episode] = value[better], start + begin + top[better]
    best[np.arange(len(query)), chosen] = -np.inf
    order = np.argsort(-best, axis=1, kind="stable")[:, : min(k, len(held) - 1)]
    return Neighbours(query, np.take_along_axis(place, order, 1), np.take_along_axis(best, order, 1))


def picture(cache: FeatureCache, found: Neighbours, source: Path | None = None) -> Image.Image:
    """A row for each query: its frame, a gap, and those nearest to it with their cosines; of a clip its middle frame.

    Raises:
        InputError: the data that the cache was made from is not there, or is other data.
    """
    pixels = _Frames(cache, source)
    columns, rows = 1 + found.row.shape[1], len(found.query)
    sheet = Image.new("RGB", size(rows, columns - 1), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    draw.text((GAP, 6), "query", fill=SOFT, font=font)
    draw.text((SIDE + 4 * GAP, 6), "nearest by cosine, each of another episode", fill=SOFT, font=font)
    for number, query in enumerate(found.query):
        top = HEAD + number * (SIDE + CAPTION + GAP)
        cells = [(int(query), ""), *zip(found.row[number].tolist(), (f"{c:.3f}" for c in found.similarity[number]))]
        for column, (row, cosine) in enumerate(cells):
            left = GAP + column * (SIDE + GAP) + (2 * GAP if column else 0)
            sheet.paste(thumbnail(pixels.frame(row), SIDE), (left, top))
            draw.text((left, top + SIDE + 2), pixels.name(row), fill=SOFT, font=font)
            draw.text((left, top + SIDE + 14), cosine, fill=INK, font=font)
    return sheet


def size(queries: int, neighbours: int) -> tuple[int, int]:
    """Width and height of the picture."""
    return (1 + neighbours) * (SIDE + GAP) + 3 * GAP, HEAD + queries * (SIDE + CAPTION + GAP)


class _Frames:
    """The pixels that rows of a cache are of."""

    def __init__(self, cache: FeatureCache, source: Path | None) -> None:
        self.cache, self.clips = cache, "files" in cache.meta
        named = [str(source)] if source is not None else [part for part in cache.meta["source"].split(", ") if part]
        self.sources = [Path(name) for name in named if Path(name).exists()]
        if not self.sources:
            where = ", ".join(named) or "the data, which the cache does not name,"
            raise InputError(f"{where} is not here: say with --source where the data lies")
        if not self.clips:
            size = cache.specs.observation.height  # of films, which may be of several
            self.episodes = EpisodeData(str(self.sources[0]), size=size, memory=False).episodes

    def _place(self, row: int) -> tuple[int, int]:
        """Episode within the cache, and place in it."""
        episode = int(np.searchsorted(self.cache.offsets, row, side="right")) - 1
        return episode, row - int(self.cache.offsets[episode])

    def name(self, row: int) -> str:
        episode, place = self._place(row)
        what = "clip" if self.clips else "frame"
        return f"{'video' if self.clips else 'ep.'} {int(self.cache.numbers[episode])}, {what} {place}"

    def frame(self, row: int) -> NDArray[np.uint8]:
        """uint8 [H,W,C]"""
        return self._of_clip(row) if self.clips else self._of_episode(row)

    def _of_episode(self, row: int) -> NDArray[np.uint8]:
        episode, place = self._place(row)
        number, offsets = int(self.cache.numbers[episode]), self.cache.offsets
        length = int(offsets[episode + 1] - offsets[episode])
        if number >= len(self.episodes) or self.episodes.length(number) != length:
            raise InputError(f"{self.sources[0]} is not the data of {self.cache.path}: name that with --source")
        video = self.episodes.read(number, np.array([place]), ("video",)).video
        return video[0].permute(1, 2, 0).numpy()

    def _of_clip(self, row: int) -> NDArray[np.uint8]:
        """The frame in the middle of a clip, as it is in the file."""
        name = self.cache.meta["files"][self._place(row)[0]]
        folders = [path if path.is_dir() else path.parent for path in self.sources]
        files = [folder / name for folder in folders if (folder / name).is_file()]
        if not files:
            raise InputError(f"{name} is not in {folders[0]}: name the folder of the videos with --source")
        timing = ClipTiming(**self.cache.meta["clip"])
        with open_video(files[0]) as reader:
            middle = _middle(timing, reader.times, int(self.cache.column("start")[row]))
            return reader.decode(np.array([middle]))[0]


def _middle(timing: ClipTiming, times: NDArray[np.float64], start: int) -> int:
    """The frame in the middle of a clip that begins at a frame of a file."""
    steps = timing.frames // 2
    if timing.step is None:
        return min(start + steps * timing.hop, len(times) - 1)
    return int(shown(times, times[[min(start, len(times) - 1)]] + steps * timing.step)[0])
