"""Tables of annotated actions: in which video each begins and ends, and of which classes it is."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.parquet import read_columns
from jepa.errors import InputError, check_known

VIDEOS = ("path", "video_id")  # what names the video: a path in the data set, or the name of a file without its ending
TIMES = (("start_timestamp", "stop_timestamp"), ("start", "stop"), ("start_frame", "stop_frame"))  # best first
PUBLISHED = {"verb_class": "verb", "noun_class": "noun"}  # columns of EPIC-KITCHENS-100, under shorter names
PAIR = ("verb", "noun")  # together they are an action, where the table names none

Class = tuple[tuple[int, str], ...]  # what names a class: a number before a text, and of a pair both parts


@dataclass(frozen=True)
class Annotations:
    """Annotated actions, one in each row.

    A table (.csv or .parquet) names the video (``path``, relative to the data set, or ``video_id``), the times
    (``start_timestamp`` and ``stop_timestamp`` as HH:MM:SS.ss, ``start`` and ``stop`` in seconds, or ``start_frame``
    and ``stop_frame``) and classes, as numbers or names. Of the tables of EPIC-KITCHENS-100 (Damen et al. 2022) the
    classes are ``verb``, ``noun`` and their pair, ``action``; of others, every further column.
    """

    by: str  # what names the videos, one of VIDEOS
    video: list[str]
    seconds: np.ndarray | None  # float64 [n,2]: start and stop
    frames: np.ndarray | None  # float64 [n,2]: where the table counts frames
    classes: dict[str, list[Class]]

    def __len__(self) -> int:
        return len(self.video)

    @classmethod
    def read(cls, path: str | Path, answers: Sequence[str] | None = None) -> Annotations:
        """The table at ``path``; ``answers`` chooses among its classes, all by default.

        Raises:
            InputError: the file is missing or damaged, has no such columns, or a value is no time.
        """
        table = _columns(Path(path))
        if not (by := [name for name in VIDEOS if name in table]):
            known = " or ".join(VIDEOS)
            raise InputError(f"{path} has the columns {', '.join(table) or 'none'}; expected one of {known}")
        if not table[by[0]]:
            raise InputError(f"{path} holds no action; expected a line for each")
        timed = [pair for pair in TIMES if set(pair) <= set(table)]
        if not timed:
            known = " or ".join(" and ".join(pair) for pair in TIMES)
            raise InputError(f"{path} does not say when actions begin and end; expected the columns {known}")
        counted = [pair for pair in timed if pair == TIMES[-1]]
        clocked = [pair for pair in timed if pair != TIMES[-1]]
        classes = _classes(table)
        for name, values in classes.items():
            if (none := (_kind(""),)) in values:
                raise InputError(f"{path} names no {name} of action {values.index(none) + 1}; add it")
        check_known(f"answer of {path}", answers or (), classes)
        if not classes:
            raise InputError(f"{path} names no classes of its actions; add a column for each, such as verb and noun")
        return cls(
            by[0],
            table[by[0]],
            _times(path, table, clocked[0]) if clocked else None,
            _times(path, table, counted[0]) if counted else None,
            classes if answers is None else {name: classes[name] for name in answers},
        )


def numbered(train: Annotations, table: Annotations) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The classes of ``table`` as numbers, name -> int64 [n], and how many classes ``train`` has of each name.

    Those of ``train`` are counted from 0, in order; classes that only ``table`` has follow. No probe that learned from
    ``train`` can answer these, and each is still a class.
    """
    columns, counts = {}, {}
    for name, values in table.classes.items():
        if name not in train.classes:
            raise InputError(f"the training table has no {name}, which the other one has; add the column to it")
        known = sorted(set(train.classes[name]))
        number = {kind: place for place, kind in enumerate([*known, *sorted(set(values) - set(known))])}
        columns[name], counts[name] = np.array([number[value] for value in values], dtype=np.int64), len(known)
    return columns, counts


def _columns(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a table of actions, .csv or .parquet")
    if path.suffix == ".parquet":
        columns: Mapping[str, Sequence[Any]] = read_columns(path)
        return {
            name: ["" if value is None else str(value).strip() for value in values] for name, values in columns.items()
        }
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as .csv ({error}); expected a line for each action") from error
    if bad := [number for number, line in enumerate(lines, start=1) if len(line) != len(lines[0])]:
        raise InputError(f"{path}, line {bad[0]} has {len(lines[bad[0] - 1])} values, its header names {len(lines[0])}")
    columns = [[value.strip() for value in column] for column in zip(*lines)]
    names = [name for name, *_ in columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path} names a column twice, {twice[0]!r}; rename or remove one")
    return {name: values for name, *values in columns}


def _classes(table: Mapping[str, list[str]]) -> dict[str, list[Class]]:
    published = [name for name in PUBLISHED if name in table]
    taken = {*VIDEOS, *(name for pair in TIMES for name in pair)}
    names = published or [name for name in table if name not in taken]
    classes = {PUBLISHED.get(name, name): [(_kind(value),) for value in table[name]] for name in names}
    if set(PAIR) <= set(classes) and "action" not in classes:
        classes["action"] = [verb + noun for verb, noun in zip(*(classes[name] for name in PAIR))]
    return classes


def _kind(value: str) -> tuple[int, str]:
    """Whole numbers are in the order of numbers, before all names."""
    try:
        number = float(value)
    except ValueError:
        return 1 << 62, value
    return (int(number), "") if number.is_integer() else (1 << 62, value)


def _times(path: str | Path, table: Mapping[str, list[str]], names: tuple[str, str]) -> np.ndarray:
    try:
        return np.array([[_seconds(value) for value in table[name]] for name in names], dtype=np.float64).T
    except ValueError as error:
        wrong = f"{names[0]} and {names[1]} of {path} hold what is no time ({error})"
        raise InputError(f"{wrong}; expected numbers, or HH:MM:SS.ss for timestamps") from error


def _seconds(value: str) -> float:
    """12.5, or 00:00:12.50"""
    seconds = 0.0
    for part in value.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
