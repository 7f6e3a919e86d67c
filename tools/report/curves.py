"""Training curves as small multiples of SVG."""

from __future__ import annotations

import json
from html import escape

import numpy as np

from jepa.axes import Axis, value_axis
from tools.report.content import Curve, Panel
from tools.report.markup import number, plain, significant, tag

WIDTH, HEIGHT = 320, 172
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22
LIMIT = 160  # buckets of a drawn line: each keeps its smallest and its largest value


def chart(panel: Panel) -> str:
    """A card with the title, the last value of each curve, the chart and how to read it."""
    curves = [_finite(curve) for curve in panel.curves]
    drawn = [(name, steps, values) for name, steps, values in curves if len(values)]
    heading = tag("h4", escape(panel.title)) + (tag("p", escape(panel.note)) if panel.note else "")
    if not drawn:
        nothing = tag("p", "No value was logged.", class_="missing")
        return tag("figure", tag("figcaption", heading), nothing, class_="card")
    return tag("figure", tag("figcaption", heading, _legend(drawn)), _svg(panel, drawn), class_="card chart")


def _finite(curve: Curve) -> tuple[str, np.ndarray, np.ndarray]:
    steps, values = np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.values, dtype=np.float64)
    keep = np.isfinite(values)
    return curve.name, steps[keep], values[keep]


def _legend(drawn: list) -> str:
    items = (
        f'<span><i class="key s{index}"></i>{escape(name)} {tag("b", number(values[-1]))}</span>'
        for index, (name, _, values) in enumerate(drawn)
    )
    return tag("p", *items, class_="legend")


def _svg(panel: Panel, drawn: list) -> str:
    everything = np.concatenate([values for _, _, values in drawn])
    if panel.reference is not None:
        everything = np.append(everything, panel.reference)
    steps = np.concatenate([steps for _, steps, _ in drawn])
    first, last = float(steps.min()), float(steps.max())
    alone = float(first == last)  # one step logged: in the middle
    x = Axis(first - alone, last + alone, LEFT, WIDTH - RIGHT)
    y = value_axis(everything, HEIGHT - BOTTOM, TOP, panel.log)
    lines = [_thin(curve_steps, values) for _, curve_steps, values in drawn]
    marks = _grid(x, y) + _reference(panel, y)
    marks += "".join(_line(index, x.place(s), y.place(v)) for index, (s, v) in reversed(list(enumerate(lines))))
    hover = [
        [name, [[round(float(a), 1), round(float(b), 1), plain(c), significant(d)] for a, b, c, d in points]]
        for (name, _, _), points in zip(drawn, (zip(x.place(s), y.place(v), s, v) for s, v in lines))
    ]
    return tag(
        "svg",
        marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=_words(panel, drawn, y.log),
        data_curves=json.dumps(hover, separators=(",", ":")),
    )


def _grid(x: Axis, y: Axis) -> str:
    rows = (
        f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{place + 3:.1f}" text-anchor="end">{_short(tick)}</text>'
        for tick, place in ((tick, float(y.place(tick))) for tick in y.ticks())
    )
    columns = (
        f'<text class="tick" x="{float(x.place(tick)):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_short(tick)}</text>'
        for tick in x.ticks()
        if tick.is_integer()
    )
    scale = f'<text class="tick" x="{LEFT + 4}" y="{TOP + 8}">log</text>' if y.log else ""
    return "".join(rows) + "".join(columns) + scale


def _reference(panel: Panel, y: Axis) -> str:
    if panel.reference is None or (y.log and panel.reference <= 0):
        return ""
    place = float(y.place(panel.reference))
    name = f"{panel.reference_name} ({_short(panel.reference)})" if panel.reference_name else _short(panel.reference)
    above = place - 4 if place > TOP + 14 else place + 11
    return (
        f'<path class="reference" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{above:.1f}" text-anchor="end">{escape(name)}</text>'
    )


def _line(index: int, xs: np.ndarray, ys: np.ndarray) -> str:
    if len(xs) == 1:
        return f'<path class="line lone s{index}" d="M{xs[0]:.1f} {ys[0]:.1f}h0"/>'
    points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys))
    return f'<path class="line s{index}" d="M{points}"/>'


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Few enough points to draw; a spike survives, since each bucket keeps its extremes."""
    if len(values) <= 2 * LIMIT:
        return steps, values
    buckets = np.array_split(np.arange(len(values)), LIMIT)
    keep = {int(bucket[pick(values[bucket])]) for bucket in buckets for pick in (np.argmin, np.argmax)}
    kept = np.array(sorted(keep | {0, len(values) - 1}))
    return steps[kept], values[kept]


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:g}".replace("e-0", "e-").replace("-", "\u2212")


def _words(panel: Panel, drawn: list, log: bool) -> str:
    parts = (
        f"{name} from {significant(values[0])} at step {plain(steps[0])} to {significant(values[-1])} at step "
        f"{plain(steps[-1])}"
        for name, steps, values in drawn
    )
    return f"{panel.title}{', logarithmic' if log else ''}: " + "; ".join(parts)
