"""Images as videos of one frame, read by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from jepa.data.decoders import Region, Unreadable, check_frames, part, unreadable, whole

TURNS = {  # by the EXIF orientation: what brings an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP = "I;16"  # 16-bit grey, in either order of bytes
BOUNDLESS = ("I", "F")  # numbers of 32 bits, of which nobody says what black and white are


class FileReader:
    """A :class:`jepa.data.decoders.Reader` of one image: RGB, upright as its EXIF orientation says; of an animated
    image the first frame; of 16 bits the upper ones."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, np.zeros(1)
        try:
            with Image.open(path) as image:
                self.codec = (image.format or "").lower()
                self._pixels = _upright(image)
        except Exception as error:  # Pillow's readers of damaged files raise whatever their parsers meet
            raise unreadable(path, "cannot be read as an image", error) from error
        if self._pixels is None:
            raise Unreadable(path, "has pixels of no known range", "32-bit numbers, expected 8 or 16 bits")
        self.height, self.width = self._pixels.shape[:2]

    def decode(self, frames: np.ndarray, region: Region = whole) -> np.ndarray:
        return part(self._pixels[None], region, self.path)[check_frames(frames, 1, self.path)]

    def close(self) -> None:
        """The file was closed when it was read."""


def _upright(image: Image.Image) -> np.ndarray | None:
    """RGB uint8 [H,W,3]; None where its numbers have no range. ``ImageOps.exif_transpose`` would write the EXIF anew,
    which fails where any other tag of it is damaged."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    if image.mode in BOUNDLESS:
        return None
    if image.mode.startswith(DEEP):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image if turn is None else image.transpose(turn)
    return np.asarray(image.convert("RGB"))
