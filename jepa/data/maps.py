"""Labels of every pixel of a video: which class or what value is where, cut as the pixels of a clip are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from jepa.data.crops import Box
from jepa.errors import InputError

ENDINGS = (".npy", ".png")
BLOCK = 1 << 20  # bytes that are hashed together
KINDS = {np.dtype(np.uint8): "classes", np.dtype(np.float32): "values"}


def map_file(folder: str | Path, maps: str, name: str) -> Path:
    """The map of the file ``name`` of the data set in ``folder``: of the same name in its folder ``maps``, but for its
    ending. A file is never its own map.

    Raises:
        InputError: there is none.
    """
    files = [Path(folder, maps, name).with_suffix(ending) for ending in ENDINGS]
    own = os.path.abspath(Path(folder, name))
    for file in files:
        if file.is_file() and os.path.abspath(file) != own:
            return file
    raise InputError(f"{name} has no map: neither {' nor '.join(map(str, files))} exists; write it, or leave maps out")


def maps_digest(folder: str | Path, maps: str, names: Iterable[str]) -> tuple[str, str]:
    """SHA-256 over the maps of these files, at least one, which must all be there and of one kind; and that kind.

    Raises:
        InputError: one is missing, cannot be read, or holds values where others hold classes.
    """
    digest, first = hashlib.sha256(), None
    for file in (map_file(folder, maps, name) for name in names):
        kind = _opened(file).dtype
        first = first or (file, kind)
        if kind != first[1]:
            raise InputError(f"{first[0]} holds {KINDS[first[1]]}, {file} {KINDS[kind]}; give maps of one kind")
        with file.open("rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
    return digest.hexdigest(), KINDS[first[1]]


def read_map(
    file: str | Path, frames: np.ndarray, count: int, picture: tuple[int, int], box: Box, size: tuple[int, int]
) -> np.ndarray:
    """What a map says of a clip, [T,h,w]: uint8 classes, 255 for none, or float32 values, NaN for none.

    A map is an array [F,H,W] (.npy), or one picture [H,W] (.npy, or a .png of one channel) for all frames. It may be
    coarser than the video, of the same shape: every pixel of the clip gets the label at its middle.

    Args:
        file: the map.
        frames: which frames of the video the clip shows, int64 [T].
        count: frames of the video.
        picture: height and width of its frames.
        box: the part of them that is cut.
        size: height and width of the clip.

    Raises:
        InputError: the file is damaged, of another type, or does not fit the video.
    """
    array = _opened(Path(file))
    length, (height, width) = 1 if array.ndim == 2 else len(array), array.shape[-2:]
    if length not in (1, count) or height * picture[1] != width * picture[0]:
        shape = f"[{count},{picture[0]},{picture[1]}]"
        raise InputError(f"{file} is {list(array.shape)}, expected {shape} as the video, or coarser in space")
    scale = height / picture[0]
    rows = _middles(box.top, box.height, size[0], scale, height)
    columns = _middles(box.left, box.width, size[1], scale, width)
    if length == 1:
        plane = np.asarray(array.reshape(height, width)[np.ix_(rows, columns)])
        return np.broadcast_to(plane, (len(frames), *size)).copy()
    return np.asarray(array[np.ix_(frames, rows, columns)])


def _middles(first: int, length: int, count: int, scale: float, side: int) -> np.ndarray:
    """Where in the map the middles of ``count`` pixels lie that a part of the picture is resized to."""
    middles = (first + (np.arange(count) + 0.5) * length / count) * scale
    return np.clip(middles.astype(np.int64), 0, side - 1)


def _opened(file: Path) -> np.ndarray:
    try:
        if file.suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            with Image.open(file) as image:
                array = np.asarray(image)
    except Exception as error:  # Pillow's readers of damaged files raise whatever their parsers meet
        raise InputError(f"{file} cannot be read as a map ({error}); write it again") from error
    if array.dtype not in KINDS or array.ndim not in (2, 3):
        raise InputError(
            f"{file} is {array.dtype} {list(array.shape)}, expected uint8 classes or float32 values, [F,H,W] or [H,W]; "
            "convert it"
        )
    return array
