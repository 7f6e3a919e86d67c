"""Which files a data set has: those below a folder, or those that a published list names."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jepa.data.decoders import ENDINGS
from jepa.errors import InputError

log = logging.getLogger(__name__)

LABEL = re.compile(r"-?[0-9]{1,18}")  # what 64 bits hold


def scanned(folder: Path) -> dict[str, int]:
    """Videos and images of a folder, sub-folders included: relative path -> bytes, sorted. Hidden ones are left out.

    Whatever has the ending is listed, also links to nothing and what is no regular file, of 0 bytes: probing them says
    why they cannot be read. What has no name in UTF-8, which an index could not hold, and folders that cannot be
    entered are left out and named in the log.
    """
    found = {}
    for path in _entries(folder, ()):
        name = os.path.relpath(path, folder)
        if os.fsencode(name).decode("utf-8", "ignore") != name:
            log.warning("%r in %s is left out: its name is not UTF-8; rename it", os.fsencode(name), folder)
            continue
        found[name] = _bytes(path)
    return dict(sorted(found.items()))


def _bytes(path: str) -> int:
    try:
        about = os.stat(path)
    except OSError:
        return 0
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def _entries(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Links are followed, but for those that lead back to a folder that they are in."""
    try:
        about = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        log.warning("%s is left out: it cannot be opened (%s)", folder, error.strerror)
        return
    if (place := (about.st_dev, about.st_ino)) in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            yield from _entries(Path(entry.path), (*above, place))
        elif entry.name.lower().endswith(ENDINGS):
            yield entry.path


def listed(path: Path) -> tuple[list[str], np.ndarray]:
    """A list as V-JEPA publishes them, a path, a space and a whole number in each line: paths as written, and the
    labels, int64."""
    files, labels = [], []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not (words := line.strip().rsplit(None, 1)):
                continue
            if len(words) != 2 or not LABEL.fullmatch(words[1]):
                raise InputError(f"{path}, line {number}: expected a path, a space and a whole number as label")
            files.append(words[0])
            labels.append(int(words[1]))
    return files, np.array(labels, dtype=np.int64)


def label_table(path: Path, files: Iterable[str], folder: Path) -> dict[str, np.ndarray]:
    """Columns of a .csv with the header ``path,name,...``: name -> float64, one number for each of ``files`` and NaN
    for those without a line. Paths are relative to the folder of the files, or absolute.

    Raises:
        InputError: the file is missing, has no such header, a value is no number, or no line names one of the files.
    """
    names, given = _label_rows(path)
    rows = {os.path.abspath(folder / name): number for number, name in enumerate(files)}
    values = np.full((len(names), len(rows)), np.nan)
    matched = 0
    for name, numbers in given:
        row = rows.get(os.path.abspath(folder / name))
        if row is not None:
            values[:, row] = numbers
            matched += 1
    if not matched:
        example = f", such as {given[0][0]!r}" if given else ""
        raise InputError(f"none of the {len(given)} lines of {path}{example} names a file of {folder}; use their paths")
    if lost := len(given) - matched:
        log.warning("%d of %d lines of %s name files that are not there", lost, len(given), path)
    if lacking := int(np.isnan(values).any(axis=0).sum()):
        log.warning("%d of %d files have no label in %s: NaN stands for them", lacking, len(rows), path)
    return dict(zip(names, values))


def _label_rows(path: Path) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Names of the labels, and for each line the path and its numbers."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a .csv with the header path,name,...")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); save it as that") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(lines, [])]
    if len(header) < 2 or header[0] != "path" or len(set(header)) < len(header) or not all(header):
        raise InputError(f"{path} begins with {','.join(header)!r}, expected the header path,name,...; add it")
    try:
        rows = [(line[0], [float(value) for value in line[1:]]) for line in lines if line]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}, line {lines.line_num}: {error}; labels are numbers") from error
    for name, numbers in rows:
        if len(numbers) != len(header) - 1:
            raise InputError(f"{path} gives {name!r} {len(numbers)} labels, the header names {len(header) - 1}")
    return header[1:], rows
