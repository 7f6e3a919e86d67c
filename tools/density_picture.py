"""A table of line charts as one SVG that stands alone: rows of one scale, a few curves in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jepa.svg import document, text

WIDTH, HEIGHT = 250, 130  # of a chart
LEFT, GAP, TOP, FOOT = 265, 34, 104, 72
STYLE = ".s1 { stroke-dasharray: 5 5; }"


@dataclass(frozen=True)
class Cell:
    """One chart."""

    curves: Sequence[Sequence[float]]
    notes: Sequence[str]  # about each curve, below the chart


@dataclass(frozen=True)
class Row:
    """Charts that share their scale."""

    name: str
    note: str
    unit: str  # what the horizontal axis counts
    cells: Sequence[Cell]


def picture(title: str, heads: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> str:
    """The SVG: a head over every column, a name before every row, curves in the order of ``names`` (at most three)."""
    width = LEFT + len(heads) * (WIDTH + GAP)
    height = TOP + len(rows) * (HEIGHT + FOOT)
    parts = [text(20, 32, title, "title"), _legend(names)]
    parts += [text(LEFT + i * (WIDTH + GAP) + WIDTH / 2, TOP - 14, head, "name middle") for i, head in enumerate(heads)]
    for number, row in enumerate(rows):
        top = TOP + number * (HEIGHT + FOOT)
        parts += [text(20, top + 20, row.name, "name"), text(20, top + 38, row.note, "soft")]
        parts.append(text(20, top + 56, f"over {row.unit}s", "soft"))
        most = 1.1 * max(max(curve) for cell in row.cells for curve in cell.curves)
        parts += [_chart(cell, row.unit, most, LEFT + i * (WIDTH + GAP), top) for i, cell in enumerate(row.cells)]
    label = f"{title}: {', '.join(row.name for row in rows)}"
    return document(width, height, label, "".join(parts), STYLE)


def _legend(names: Sequence[str]) -> str:
    keys = (
        f'<path class="line s{i}" d="M{20 + 140 * i} 54h26"/>' + text(52 + 140 * i, 58, name)
        for i, name in enumerate(names)
    )
    return "".join(keys)


def _chart(cell: Cell, unit: str, most: float, left: float, top: float) -> str:
    def place(value: float) -> float:
        return top + HEIGHT * (1 - value / most)

    marks = []
    for tick in range(int(most) + 1):
        kind = "even" if tick == 1 else "grid"
        marks.append(f'<path class="{kind}" d="M{left} {place(tick):.1f}h{WIDTH}"/>')
        marks.append(text(left - 5, place(tick) + 4, str(tick), "soft end"))
    for index, curve in enumerate(cell.curves):
        step = WIDTH / len(curve)
        points = "L".join(f"{left + step * (i + 0.5):.1f} {place(value):.1f}" for i, value in enumerate(curve))
        marks.append(f'<path class="line s{index}" d="M{points}"/>')
    count = len(cell.curves[0])
    marks.append(text(left, top + HEIGHT + 15, f"first {unit}", "soft"))
    marks.append(text(left + WIDTH, top + HEIGHT + 15, f"{unit} {count}", "soft end"))
    notes = "".join(f'<tspan class="f{i}" dx="10">{escape(note)}</tspan>' for i, note in enumerate(cell.notes))
    marks.append(f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 33}" class="middle">max / min{notes}</text>')
    return "".join(marks)
