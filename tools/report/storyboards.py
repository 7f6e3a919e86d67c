"""Real frames beside imagined ones."""

from __future__ import annotations

from html import escape

import numpy as np

from tools.report.content import Storyboard
from tools.report.markup import number, significant, tag
from tools.report.pictures import png


def storyboard(board: Storyboard) -> str:
    """One rollout: a column for each step, what happened above what was imagined."""
    worst = max((float(value) for value in board.distance if np.isfinite(value)), default=0.0) or 1.0
    unit = f", {board.unit}" if board.unit else ""
    rows = ["happened", "imagined", "distance"] + ([f"off by{unit}"] if board.position_error is not None else [])
    heads = tag("div", tag("span", "step"), *(tag("span", escape(row)) for row in rows), class_="step heads")
    steps = "".join(_step(board, index, worst) for index in range(len(board.steps)))
    strip = tag("div", heads + steps, class_="strip", tabindex="0", role="group", aria_label=board.title)
    return tag("figure", tag("figcaption", tag("h4", escape(board.title))), strip, class_="card storyboard")


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
