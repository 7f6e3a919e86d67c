"""Frames to a video file, for made datasets and for tests; reading is the decoders' work."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from jepa.data.pyav import package
from jepa.files import replacing


def write_video(path: Path, frames: np.ndarray, fps: float = 12.0, quality: int = 18, keyframes: int = 8) -> None:
    """Encode frames as H.264 in an mp4 file, whole or not at all.

    Args:
        path: the file to write, which ends in .mp4.
        frames: uint8 [T,H,W,3], H and W even.
        fps: frames per second.
        quality: constant rate factor of x264, from 0 (nothing is lost) to 51.
        keyframes: frames from one key frame to the next: random access decodes fewer frames for a small number.
    """
    av = package()
    count, height, width, channels = frames.shape
    assert frames.dtype == np.uint8 and channels == 3 and count and not height % 2 and not width % 2, frames.shape
    with replacing(path) as partial, av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = keyframes
        stream.options = {"crf": str(quality), "preset": "veryfast"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
