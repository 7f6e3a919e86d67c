"""The verb ``jepa inspect video``: look into every file of a folder once, and write what was found as an index."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from jepa.data.index import NAME, VideoIndex
from jepa.data.listing import label_table
from jepa.errors import DISK_FULL, InputError

log = logging.getLogger(__name__)

SHOWN = 5  # sizes, codecs and rates that a summary names


def inspect_video(
    path: Path,
    out: Path | None = None,
    decoder: Literal["decord", "pyav", "torchcodec"] = "decord",
    workers: int = 0,
    time_limit: float | None = 60.0,
    labels: Path | None = None,
    frames: int = 16,
) -> str:
    """Index videos and images: duration, rate, size, codec, hash, and whether they can be read or why not.

    Args:
        path: a folder, one file, or a published list (.csv: a path and a label in each line); of an index that was
            written before (.parquet), only the summary is shown
        out: the index to write; by default index.parquet in the folder, or the list's name ending in .parquet
        decoder: decord, pyav or torchcodec; where decord cannot decode a file, PyAV is taken, and the index says so
        workers: processes; 0 for all processors
        time_limit: seconds until a file that hangs the decoder is given up; null waits for ever
        labels: a .csv with the header path,name,... and numbers, to be joined to the files as columns
        frames: files with fewer frames are named as too short; what a run skips is decided by its own clips
    """
    index = VideoIndex.survey(path, decoder, workers, time_limit, fresh=True)
    if not len(index.readable):
        raise InputError(index.failure(path))
    if labels is not None:
        index = index.with_labels(label_table(labels, index.path, index.folder))
    out = out or _beside(path)
    if out is not None:
        _write(index, out)
    short = index.readable[(index.frames[index.readable] < frames) & (index.kind[index.readable] == "video")]
    for row in short.tolist():
        log.warning("%s is too short: %d frames of %d", index.where(row), index.frames[row], frames)
    where = f"written to {out}" if out is not None else "not written; choose a file with --out"
    return summary(path, index, {f"shorter than {frames} frames": len(short), "index": where})


def _beside(path: Path) -> Path | None:
    if path.is_dir():
        return path / NAME
    return path.with_suffix(".parquet") if path.suffix.lower() == ".csv" else None


def _write(index: VideoIndex, out: Path) -> None:
    if out.suffix != ".parquet":
        raise InputError(f"the index was to be written to {out}, expected a name that ends in .parquet: change --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        index.write(out)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InputError(f"{out} cannot be written ({error.strerror}); choose another file with --out") from error


def summary(path: Path, index: VideoIndex, further: dict[str, object] | None = None) -> str:
    """What an index tells, in two columns: of all files, then of the readable ones."""
    good = index.readable
    broken = np.setdiff1d(np.arange(len(index)), good)
    reasons = Counter(index.reason[row].partition(":")[0] for row in broken.tolist())
    films = good[index.kind[good] == "video"]
    facts: dict[str, object] = {"files": len(index), "readable": len(good)}
    facts |= {f"  {reason}": count for reason, count in reasons.most_common()}
    facts |= {"videos": len(films), "images": len(good) - len(films)}
    facts |= {"decoders": _counted(index.decoder[good]), "codecs": _counted(index.codec[good])}
    facts |= {"sizes": _counted(f"{w} x {h}" for w, h in zip(index.width[good], index.height[good]))}
    if len(films):
        facts["hours"] = f"{index.duration[films].sum() / 3600:.3f}"
        facts["frames"] = f"{index.frames[films].sum():,}"
        facts["seconds of a video"] = f"{index.duration[films].min():.2f} to {index.duration[films].max():.2f}"
        facts["frames per second"] = _counted(f"{rate:.2f}" for rate in index.fps[films])
        facts["variable rate"] = int(index.variable[films].sum())
    facts |= {"bytes": f"{index.bytes.sum():,}", "labels": ", ".join(index.labels) or "none"}
    return table(f"videos of {path}", facts | (further or {}))


def _counted(values: Iterable[str]) -> str:
    """The most common values with their counts: h264 (12), av1 (3)."""
    counts = Counter(str(value) for value in values).most_common()
    rest = f", {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    return ", ".join(f"{value} ({count})" for value, count in counts[:SHOWN]) + rest


def table(title: str, facts: dict[str, object]) -> str:
    """A title, and names and values in two columns."""
    width = max(map(len, facts))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])
