"""The metrics of a run in one CSV file, which a resumed fit goes on with."""

from __future__ import annotations

import csv
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from jepa.files import replacing


class Curves(Logger):
    """Writes ``folder/metrics.csv``: a row per step and set of metrics, empty where a metric was not logged.

    Lightning's CSVLogger deletes the file of an earlier start when it begins, and so loses the curves before a
    resume. This one reads them. A row that is logged again replaces the earlier one.

    Args:
        folder: where the file goes.
    """

    FILE = "metrics.csv"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / self.FILE
        self.begin_after: float = math.inf  # earlier rows up to this step are kept
        self._rows: dict[tuple[int, tuple[str, ...]], dict[str, float]] | None = None
        self._unsaved: list[dict[str, float]] = []
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in config.yaml beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._rows is None:
            self._rows = {_key(row): row for row in self._earlier() if row["step"] <= self.begin_after}
        row = {"step": step or 0} | {name: float(value) for name, value in metrics.items()}
        if _key(row) in self._rows:
            self._columns = []  # what is in the file already is replaced: write it anew
        self._rows[_key(row)] = row
        self._unsaved.append(row)

    @rank_zero_only
    def save(self) -> None:
        if not self._unsaved:
            return
        if all(name in self._columns for row in self._unsaved for name in row):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(self._unsaved)
        else:
            self._rewrite()
        self._unsaved = []

    def _rewrite(self) -> None:
        self._columns = ["step", *sorted({name for row in self._rows.values() for name in row} - {"step"})]
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows.values())

    def _earlier(self) -> list[dict[str, float]]:
        """The rows of the file; a line that a kill cut off is dropped."""
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1].splitlines()
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(whole)]
        return [row | {"step": int(row["step"])} for row in rows]


def _key(row: dict[str, float]) -> tuple[int, tuple[str, ...]]:
    return int(row["step"]), tuple(sorted(row))
