"""A table of line charts as one SVG that stands alone: rows of one scale, a few curves in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 250, 130  # of a chart
LEFT, GAP, TOP, FOOT = 265, 34, 104, 72
STYLE = """
svg { background: #fbfaf7; font: 12px ui-sans-serif, system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
text { fill: #1a1d21; } .soft { fill: #5a636e; } .title { font-size: 19px; font-weight: 600; }
.name { font-size: 14px; font-weight: 600; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: #e4e2dc; } .even { stroke: #5a636e; stroke-dasharray: 3 3; } path { fill: none; }
.line { stroke-width: 2; stroke-linejoin: round; }
.s0 { stroke: #0072b2; } .s1 { stroke: #009e73; stroke-dasharray: 5 5; } .s2 { stroke: #d55e00; }
.f0 { fill: #0072b2; } .f1 { fill: #009e73; } .f2 { fill: #d55e00; }
@media (prefers-color-scheme: dark) {
  svg { background: #0f1317; } text { fill: #e8eaed; } .soft { fill: #9aa5b1; } .grid { stroke: #262d35; }
  .even { stroke: #9aa5b1; } .s0 { stroke: #56b4e9; } .s1 { stroke: #2cc197; } .s2 { stroke: #f58a4b; }
  .f0 { fill: #56b4e9; } .f1 { fill: #2cc197; } .f2 { fill: #f58a4b; }
}
"""


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
    parts = [f"<style>{STYLE}</style>", _text(20, 32, title, "title"), _legend(names)]
    parts += [
        _text(LEFT + i * (WIDTH + GAP) + WIDTH / 2, TOP - 14, head, "name middle") for i, head in enumerate(heads)
    ]
    for number, row in enumerate(rows):
        top = TOP + number * (HEIGHT + FOOT)
        parts += [_text(20, top + 20, row.name, "name"), _text(20, top + 38, row.note, "soft")]
        parts.append(_text(20, top + 56, f"over {row.unit}s", "soft"))
        most = 1.1 * max(max(curve) for cell in row.cells for curve in cell.curves)
        parts += [_chart(cell, row.unit, most, LEFT + i * (WIDTH + GAP), top) for i, cell in enumerate(row.cells)]
    label = escape(f"{title}: {', '.join(row.name for row in rows)}", quote=True)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>\n'


def _legend(names: Sequence[str]) -> str:
    keys = (
        f'<path class="line s{i}" d="M{20 + 140 * i} 54h26"/>' + _text(52 + 140 * i, 58, name)
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
        marks.append(_text(left - 5, place(tick) + 4, str(tick), "soft end"))
    for index, curve in enumerate(cell.curves):
        step = WIDTH / len(curve)
        points = "L".join(f"{left + step * (i + 0.5):.1f} {place(value):.1f}" for i, value in enumerate(curve))
        marks.append(f'<path class="line s{index}" d="M{points}"/>')
    count = len(cell.curves[0])
    marks.append(_text(left, top + HEIGHT + 15, f"first {unit}", "soft"))
    marks.append(_text(left + WIDTH, top + HEIGHT + 15, f"{unit} {count}", "soft end"))
    notes = "".join(f'<tspan class="f{i}" dx="10">{escape(note)}</tspan>' for i, note in enumerate(cell.notes))
    marks.append(f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 33}" class="middle">max / min{notes}</text>')
    return "".join(marks)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
