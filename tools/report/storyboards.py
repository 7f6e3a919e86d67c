"""Real frames beside imagined ones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from tools.report.content import Storyboard
from tools.report.markup import number, significant, tag
from tools.report.pictures import png


def storyboards(boards: Sequence[Storyboard]) -> str:
    """A card for each rollout; the bars under the frames share one scale."""
    distances = (float(value) for board in boards for value in board.distance if np.isfinite(value))
    worst = max(distances, default=0.0) or 1.0
    return "".join(_board(board, worst) for board in boards)


def _board(board: Storyboard, worst: float) -> str:
    """A column for each step, what happened above what was imagined."""
    rows = ["happened", "imagined", "distance"] + (["off by"] if board.position_error is not None else [])
    heads = tag("div", tag("span", "step"), *(tag("span", escape(row)) for row in rows), class_="step heads")
    steps = "".join(_step(board, index, worst) for index in range(len(board.steps)))
    strip = tag("div", heads + steps, class_="strip", tabindex="0", role="group", aria_label=board.title)
    caption = tag("h4", escape(board.title)) + _explained(board)
    return tag("figure", tag("figcaption", caption), strip, class_="card storyboard")


def _explained(board: Storyboard) -> str:
    if board.position_error is None:
        return ""
    unit = f", in {board.unit}" if board.unit else ""
    return tag("p", escape(f"\u201coff by\u201d: how far apart the two frames\u2019 true positions are{unit}"))


def _step(board: Storyboard, index: int, worst: float) -> str:
    step, distance = board.steps[index], float(board.distance[index])
    filled = 100 * min(distance / worst, 1.0) if np.isfinite(distance) else 0.0
    cells = [
        tag("span", f"+{number(step, '{:g}'.format)}"),
        _frame(board.real[index], f"What happened at step {step}", "real"),
        _frame(board.imagined[index], f"The real frame nearest to what was imagined for step {step}", "dream"),
        tag("span", number(distance), f'<i class="bar" style="width:{filled:.0f}%"></i>', class_="distance"),
    ]
    if board.position_error is not None:
        cells.append(tag("span", number(float(board.position_error[index]), lambda v: significant(v, 2))))
    return tag("div", *cells, class_="step")


def _frame(frame: np.ndarray, words: str, kind: str) -> str:
    height, width = np.shape(frame)[-2:]
    return f'<img class="{kind}" src="{png(frame)}" width="{width}" height="{height}" alt="{escape(words)}">'
