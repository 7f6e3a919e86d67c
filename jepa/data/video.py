"""Video files as episodes without actions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from jepa.data import decord
from jepa.errors import InputError
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs

log = logging.getLogger(__name__)

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class VideoEpisodes:
    """One episode per video file: a :class:`jepa.schema.Episodes` whose actions have width 0 and are not read.

    Files that cannot be read are counted, named in the log and left out.

    Args:
        path: A video file, or a folder that is searched for them, sub-folders included.
        size: Height and width to which the decoder resizes; as stored if null, which needs files of one size.

    Raises:
        InputError: nothing at the path, no readable video, or several sizes and no ``size``.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        self.path, self.size = Path(path), size
        shapes: dict[Path, tuple[int, int, int]] = {}
        files = _files(self.path)
        for file in track(files, description="opening videos", disable=len(files) < 100):
            try:
                shapes[file] = decord.shape(file)
            except InputError as error:
                log.warning("left out: %s", error)
        if not shapes:
            endings = ", ".join(ENDINGS)
            raise InputError(f"none of {len(files)} video files at {self.path} can be read; expected {endings}")
        self.skipped = len(files) - len(shapes)
        if self.skipped:
            log.warning("%d of %d video files cannot be read and are left out", self.skipped, len(files))
        self.files, self._length = list(shapes), [shape[0] for shape in shapes.values()]
        seen = _observed(self.path, {shape[1:] for shape in shapes.values()}, size)
        self.specs = Specs(ActionSpec((), (), (), ()), seen)

    def __len__(self) -> int:
        return len(self.files)

    def length(self, episode: int) -> int:
        return self._length[episode]

    def read(self, episode: int, frames: Any, columns: tuple[str, ...] | None = None) -> Sample:
        """Frames (int64 [T], any order) of a file: video uint8 [T,C,H,W], a permuted view. Nothing else is decoded
        than what the codec needs for them."""
        frames, length = np.asarray(frames, dtype=np.int64), self.length(episode)
        if missing := [name for name in columns or () if name != "video"]:
            raise InputError(f"{self.files[episode]} has no column {missing[0]!r}; a video has only video")
        if frames.size and not 0 <= frames.min() <= frames.max() < length:
            raise IndexError(f"{self.files[episode]} has {length} frames, asked for {frames.tolist()}")
        pixels = decord.decode(self.files[episode], frames, self.size)
        return Sample(video=torch.from_numpy(pixels).permute(0, 3, 1, 2))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; expected a video file or a folder of them")
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)


def _observed(path: Path, found: set[tuple[int, ...]], size: int | None) -> ObservationSpec:
    if size is None and len(found) > 1:
        examples = sorted(found)[:2]
        raise InputError(f"{path} holds videos of {len(found)} sizes, such as {examples}; choose one with size")
    height, width = (size, size) if size is not None else next(iter(found))
    return ObservationSpec(height, width)
