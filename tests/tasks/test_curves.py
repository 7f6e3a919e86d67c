"""One CSV file over all starts of a run."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from jepa.tasks.curves import Curves


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def written(folder: Path, begin_after: float, steps: range, **extra: float) -> list[dict[str, str]]:
    curves = Curves(str(folder))
    curves.begin_after = begin_after
    for step in steps:
        curves.log_metrics({"loss": step / 3} | extra, step)
        curves.save()
    return rows(folder)


def test_a_resumed_run_goes_on_behind_its_checkpoint(tmp_path):
    written(tmp_path, -1, range(6))
    again = written(tmp_path, 3, range(3, 8))  # rows 4 and 5 came after the checkpoint, row 3 is logged again
    assert [row["step"] for row in again] == [str(step) for step in range(8)]
    assert [float(row["loss"]) for row in again] == [step / 3 for step in range(8)], "no digit is lost"


def test_new_columns_leave_old_rows_empty_and_a_cut_line_is_dropped(tmp_path):
    written(tmp_path, -1, range(2))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "2,0.66")
    again = written(tmp_path, math.inf, range(5, 6), rank=4.0)
    assert [(row["step"], row["rank"]) for row in again] == [("0", ""), ("1", ""), ("5", "4.0")]


def test_nothing_is_touched_before_the_first_metric(tmp_path):
    before = written(tmp_path, -1, range(3))
    Curves(str(tmp_path)).save()
    assert rows(tmp_path) == before


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    written(tmp_path, -1, range(1), bad=math.nan)
    assert written(tmp_path, math.inf, range(1, 2), bad=math.inf)[0]["bad"] == "nan"
