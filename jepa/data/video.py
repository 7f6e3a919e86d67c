"""Video files as episodes without actions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa.data.crops import Box, cut
from jepa.data.decoders import ENDINGS, open_video
from jepa.data.guard import Guard
from jepa.data.index import VideoIndex
from jepa.errors import InputError
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs

__all__ = ["ENDINGS", "VideoEpisodes"]

log = logging.getLogger(__name__)


class VideoEpisodes:
    """One episode per video file: a :class:`jepa.schema.Episodes` whose actions have width 0 and are not read.

    Files that cannot be read are counted, named in the log and left out; so are images, which have no second frame.
    Labels of the index are the privileged state, the same at every frame.

    Args:
        path: What :class:`jepa.data.index.VideoIndex` opens: a video file, a folder that is searched for them,
            sub-folders included, an index (.parquet) or a list (.csv).
        size: Height and width to which frames are resized; as stored if null, which needs files of one size.
        decoder: decord, pyav or torchcodec.
        time_limit: Seconds until the reading of a window is given up; null waits for ever.

    Raises:
        InputError: nothing at the path, no readable video, or several sizes and no ``size``.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        decoder: str = "decord",
        time_limit: float | None = 60.0,
    ) -> None:
        self.path, self.size = Path(path), size
        self.index = index = VideoIndex.open(path, decoder, time_limit=time_limit)
        self.rows = index.readable[index.kind[index.readable] == "video"]
        if not len(self.rows):
            raise InputError(f"{path} holds images and no video; expected {', '.join(ENDINGS)}")
        self.skipped = len(index) - len(index.readable)
        seen = _observed(self.path, index, self.rows, size)
        self.specs = Specs(ActionSpec((), (), (), ()), seen)
        self._guard = Guard(time_limit)

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, episode: int) -> int:
        return int(self.index.frames[self.rows[episode]])

    def where(self, episode: int) -> Path:
        return self.index.where(self.rows[episode])

    def read(self, episode: int, frames: Any, columns: tuple[str, ...] | None = None) -> Sample:
        """Frames (int64 [T], any order) of a file: video uint8 [T,C,H,W], a permuted view; state float32 [T,X] where
        the index has labels. Nothing else is decoded than what the codec needs for them."""
        row, frames, length = self.rows[episode], np.asarray(frames, dtype=np.int64), self.length(episode)
        labels = self.specs.observation.state_names
        known = ("video", "state") if labels else ("video",)
        if missing := [name for name in columns or () if name not in known]:
            raise InputError(f"{self.where(episode)} has no column {missing[0]!r}; it has {', '.join(known)}")
        if frames.size and not 0 <= frames.min() <= frames.max() < length:
            raise IndexError(f"{self.where(episode)} has {length} frames, asked for {frames.tolist()}")
        sample = Sample()
        if columns is None or "video" in columns:
            pixels = self._guard(_decoded, str(self.where(episode)), str(self.index.decoder[row]), frames, self.size)
            sample.video = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if labels and (columns is None or "state" in columns):
            values = [float(self.index.columns[name][row]) for name in labels]
            sample.state = torch.tensor(values).repeat(len(frames), 1)
        return sample


def _decoded(path: str, decoder: str, frames: np.ndarray, size: int | None) -> np.ndarray:
    """Frames of a file, uint8 [T,H,W,3]."""
    with open_video(path, decoder) as reader:
        if frames.size and frames.max() >= (count := len(reader.times)):
            raise InputError(f"{path} has {count} frames, fewer than its index says: run `jepa inspect video` again")
        pixels = reader.decode(frames)
    return pixels if size is None else cut(pixels, Box(0, 0, *pixels.shape[1:3]), (size, size), False)


def _observed(path: Path, index: VideoIndex, rows: np.ndarray, size: int | None) -> ObservationSpec:
    found = np.unique(np.stack([index.height[rows], index.width[rows]], axis=1), axis=0).tolist()
    if size is None and len(found) > 1:
        raise InputError(f"{path} holds videos of {len(found)} sizes, such as {found[:2]}; choose one with size")
    height, width = (size, size) if size is not None else found[0]
    return ObservationSpec(height, width, state_names=index.labels)
