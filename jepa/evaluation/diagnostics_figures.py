"""The diagnostics of a world model as SVG: lines with their intervals, and maps of the energy of actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jepa.axes import Axis, value_axis
from jepa.evaluation.diagnostics import Estimate
from jepa.svg import document, text

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, FOOT = 70, 24, 48
LINE = 18  # of the legend
CELL, GAP, HEAD = 190, 62, 74  # pixels of a map, between maps, above them
STYLE = ".band { opacity: 0.16; } rect.cell { shape-rendering: crispEdges; } .mark { fill: none; stroke: #fff; }"
STYLE += " .under { fill: none; stroke: #000; } .mark, .under { stroke-width: 2; } .under { stroke-width: 4; }"
# from cheap to dear: dark to bright, told apart in grey too (the anchors of viridis)
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)


def lines_figure(
    title: str,
    across: str,
    x: Sequence[float],
    lines: Mapping[str, Sequence[Estimate]],
    levels: Mapping[str, float] | None = None,
    log: bool = False,
    note: str = "",
) -> str:
    """A line with its interval for each name; ``levels`` are horizontal lines to compare with.

    Args:
        title: of the figure, with the unit of its values
        across: what x is
        x: whole numbers, rising
        lines: name -> one estimate for each x
        levels: name -> value
        log: a logarithmic scale, where all values are positive
        note: how to read it, below the title
    """
    levels = levels or {}
    bounds = [end for line in lines.values() for part in line for end in (part.low, part.high)]
    bounds = np.array([value for value in (*bounds, *levels.values()) if math.isfinite(value)] or [0.0, 1.0])
    top = 48 + LINE * (len(lines) + bool(note)) + 6
    height = HEIGHT + top - 90
    down = value_axis(bounds, height - FOOT, top, log=log and bool((bounds > 0).all()))
    over = Axis(x[0] - 0.25, x[-1] + 0.25, LEFT, WIDTH - RIGHT)
    marks = [text(20, 28, title, "title")] + ([text(20, 50, note, "soft")] if note else [])
    marks += _frame(down, over, x, height)
    for name, level in levels.items():
        if math.isfinite(level):
            place = float(down.place(level))
            marks.append(f'<path class="even" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
            marks.append(text(LEFT + 4, place - 5, name, "soft"))
    for number, (name, line) in enumerate(lines.items()):
        above = 50 + LINE * (number + bool(note))
        marks += [f'<path class="line s{number}" d="M20 {above - 4}h18"/>', text(44, above, name, "soft")]
        marks += _line(number, over.place(np.array(x, dtype=np.float64)), line, down)
    marks.append(text((LEFT + WIDTH - RIGHT) / 2, height - 10, across, "soft middle"))
    told = "; ".join(f"{name}: {line[0].value:.3g} to {line[-1].value:.3g}" for name, line in lines.items())
    return document(WIDTH, height, f"{title}, {across} {x[0]} to {x[-1]}: {told}", "".join(marks), STYLE)


def _frame(down: Axis, over: Axis, x: Sequence[float], height: float) -> list[str]:
    marks = []
    for tick in down.ticks():
        place = float(down.place(tick))
        marks.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
        marks.append(text(LEFT - 8, place + 4, f"{tick:g}", "soft end"))
    stride = max(1, math.ceil(len(x) / 16))
    foot = height - FOOT + 18
    return marks + [text(float(over.place(tick)), foot, f"{tick:g}", "soft middle") for tick in x[::stride]]


def _line(number: int, xs: np.ndarray, line: Sequence[Estimate], down: Axis) -> list[str]:
    values = np.array([(part.low, part.value, part.high) for part in line])
    known = np.isfinite(values).all(1)
    if not known.any():
        return []
    low, middle, high = (down.place(column) for column in values[known].T)
    xs = xs[known]
    ring = [*zip(xs, high), *zip(xs[::-1], low[::-1])]
    dots = "".join(f'<circle class="f{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in zip(xs, middle))
    shape = f'<polygon class="band f{number}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in ring)}"/>'
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, middle))
    return [shape, f'<path class="line s{number}" d="M{path}"/>', dots]


@dataclass(frozen=True)
class Landscape:
    """The cost of plans over two dimensions of the action, and what was recorded there."""

    title: str
    x: Sequence[float]  # [G]
    y: Sequence[float]  # [G]
    cost: np.ndarray  # [G,G], y slowest
    recorded: tuple[float, float]
    names: tuple[str, str]  # of x and of y


def landscapes_figure(title: str, maps: Sequence[Landscape], columns: int = 3) -> str:
    """Heat maps side by side, each with a scale of its own; a ring is what was recorded, a cross the cheapest plan."""
    columns = min(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    width = max(460, LEFT - 10 + columns * (CELL + GAP))
    height = HEAD + rows * (CELL + GAP + 26)
    marks = [text(20, 28, title, "title")]
    marks.append(text(20, 50, "dark is cheap; ring: the recorded action, cross: the cheapest on the grid", "soft"))
    for number, part in enumerate(maps):
        left = LEFT - 10 + number % columns * (CELL + GAP)
        marks.append(_map(part, left, HEAD + 22 + number // columns * (CELL + GAP + 26)))
    told = f"{title}: {len(maps)} maps of {maps[0].names[0]} and {maps[0].names[1]}"
    return document(width, height, told, "".join(marks), STYLE)


def _map(part: Landscape, left: float, top: float) -> str:
    cost = np.asarray(part.cost, dtype=np.float64)
    side = CELL / len(part.x)
    shade = (cost - cost.min()) / max(float(np.ptp(cost)), np.finfo(np.float64).tiny)
    marks = [text(left, top - 8, part.title, "soft")]
    for row, column in np.ndindex(cost.shape):
        place = f'x="{left + column * side:.2f}" y="{top + CELL - (row + 1) * side:.2f}"'
        size = f'width="{side:.2f}" height="{side:.2f}"'
        marks.append(f'<rect class="cell" {place} {size} fill="{_colour(shade[row, column])}"/>')
    # a cell is centred on its value, so that the ends lie half a cell within the map
    over = Axis(part.x[0], part.x[-1], left + side / 2, left + CELL - side / 2)
    down = Axis(part.y[0], part.y[-1], top + CELL - side / 2, top + side / 2)
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    marks += _cross(float(over.place(part.x[column])), float(down.place(part.y[row])))
    x, y = float(over.place(part.recorded[0])), float(down.place(part.recorded[1]))
    marks += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>' for kind in ("under", "mark")]
    for values, places in ((part.x, over), (part.y, down)):
        for value in (values[0], values[-1]):
            place = float(places.place(value))
            spot = (place, top + CELL + 15, "soft middle") if places is over else (left - 6, place + 4, "soft end")
            marks.append(text(spot[0], spot[1], f"{value:.3g}", spot[2]))
    marks.append(text(left + CELL / 2, top + CELL + 30, f"across {part.names[0]}, up {part.names[1]}", "soft middle"))
    marks.append(text(left + CELL / 2, top + CELL + 46, f"cost {cost.min():.3g} to {cost.max():.3g}", "soft middle"))
    return "".join(marks)


def _cross(x: float, y: float) -> list[str]:
    shape = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
    return [f'<path class="{kind}" d="{shape}"/>' for kind in ("under", "mark")]


def _colour(share: float) -> str:
    red, green, blue = (
        round(float(np.interp(share, np.linspace(0, 1, len(COLOURS)), channel))) for channel in COLOURS.T
    )
    return f"#{red:02x}{green:02x}{blue:02x}"
