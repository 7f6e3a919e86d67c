"""Images as videos of one frame, read by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jepa.data.decoders import Region, check_frames, part, unreadable, whole

# Pillow raises SyntaxError for some broken PNG files, and an error of its own for images that are too large
FAULTS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class FileReader:
    """A :class:`jepa.data.decoders.Reader` of one image: RGB, upright as its EXIF orientation says; of an animated
    image the first frame."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, np.zeros(1)
        try:
            with Image.open(path) as image:
                self.codec = (image.format or "").lower()
                self._pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except FAULTS as error:
            raise unreadable(path, "cannot be read as an image", error) from error
        self.height, self.width = self._pixels.shape[:2]

    def decode(self, frames: np.ndarray, region: Region = whole) -> np.ndarray:
        return part(self._pixels[None], region, self.path)[check_frames(frames, 1, self.path)]

    def close(self) -> None:
        """The file was closed when it was read."""
