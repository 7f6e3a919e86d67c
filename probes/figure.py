"""The picture of a probe's report: bars beside what the encoder is compared with, and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jepa.axes import Axis, value_axis
from jepa.svg import document, text

WIDTH, LEFT, RIGHT = 760, 130, 190  # of the picture, of the names before the bars, and of the numbers after them
TOP, BAR, STEP = 72, 16, 30
CURVE, FOOT = 190, 62  # height of the learning curve, and of what stands below a chart
LOWEST = -1.0  # R2 has no lower end; a bar that falls below this is cut

NAMES = {"r2": "R2", "auc": "area under the ROC curve", "mean_iou": "mean IoU", "recall_at_5": "class-mean recall at 5"}


def figure(report: Mapping[str, Any]) -> str:
    """The SVG of a report (see :func:`probes.report.compare`): self-contained, light or dark."""
    metric = report["metric"]
    rows = [("encoder", report), *report["baselines"].items()]
    bottom = TOP + STEP * len(rows)
    marks = [*_head(report), *_bars(rows, metric, _floor(report), bottom)]
    height = bottom + FOOT
    if report["curve"]:
        marks += _curve(report["curve"], metric, height + 16)
        height += CURVE + FOOT + 16
    told = ", ".join(f"{name} {part[metric]:.3f}" for name, part in rows)
    label = f"{report['probe']} of {report['target']}, {_named(metric)}: {told}"
    return document(WIDTH, height, label, "".join(marks))


def _head(report: Mapping[str, Any]) -> list[str]:
    seeds = len(report["seeds"])
    of = "episodes" if seeds == 1 else "episodes and seeds"
    name = report["probe"].rpartition(".")[2]
    counted = f"{report['episodes']['test']} test episodes, {seeds} seed{'s' if seeds > 1 else ''}"
    cut = f"; cut at {LOWEST:g}" if _lowest(report) < LOWEST else ""
    return [
        text(20, 30, f"{_named(report['metric'])} of {name} on {report['target']}", "title"),
        text(20, 52, f"{counted}; whiskers: 95 % bootstrap intervals over {of}{cut}", "soft"),
    ]


def _lowest(report: Mapping[str, Any]) -> float:
    """The lowest value of the picture, intervals included."""
    metric = report["metric"]
    parts = [part for whole in (report, *report["curve"]) for part in (whole, *whole["baselines"].values())]
    return min(value for part in parts for value in (part[metric], *(part[f"{metric}_interval"] or ())))


def _named(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


def _floor(report: Mapping[str, Any]) -> tuple[float, str] | None:
    """What needs no features, where that is known."""
    if report["metric"] == "accuracy":
        return report["accuracy_of_most_common"], "most common class"
    return {"r2": (0.0, "mean of the targets"), "auc": (0.5, "chance")}.get(report["metric"])


def _ends(part: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
    """A score and its interval; of a score without one, the score itself."""
    value = part[metric]
    low, high = part[f"{metric}_interval"] or (value, value)
    return tuple(max(LOWEST, edge) for edge in (value, low, high))


def _bars(
    rows: Sequence[tuple[str, Mapping[str, Any]]], metric: str, floor: tuple[float, str] | None, bottom: float
) -> list[str]:
    ends = np.array([_ends(part, metric) for _, part in rows])
    x = Axis(min(0.0, float(ends.min())), max(1.0, float(ends.max())), LEFT, WIDTH - RIGHT)
    marks = []
    for tick in x.ticks(5):
        marks.append(f'<path class="grid" d="M{x.place(tick):.1f} {TOP - 6}V{bottom}"/>')
        marks.append(text(x.place(tick), bottom + 16, f"{tick:g}", "soft middle"))
    for number, (name, part) in enumerate(rows):
        marks += _bar(x, TOP + STEP * number, number, name, part, metric, ends[number])
    if floor is not None:
        place = float(x.place(floor[0]))
        marks.append(f'<path class="even" d="M{place:.1f} {TOP - 6}V{bottom}"/>')
        marks.append(text(place, bottom + 34, f"{floor[1]} {floor[0]:.3g}", "soft middle"))
    return marks


def _bar(
    x: Axis, top: float, number: int, name: str, part: Mapping[str, Any], metric: str, ends: np.ndarray
) -> list[str]:
    value, low, high = (float(x.place(end)) for end in ends)
    zero, middle = float(x.place(0.0)), top + BAR / 2
    interval = part[f"{metric}_interval"]
    between = "" if interval is None else f"  [{interval[0]:.3f}, {interval[1]:.3f}]"
    left, width = min(zero, value), abs(value - zero)
    return [
        text(LEFT - 12, middle + 4, name, "end"),
        f'<rect class="f{number % 6}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        f'<path class="span" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>',
        text(WIDTH - RIGHT + 14, middle + 4, f"{part[metric]:.3f}{between}"),
    ]


def _curve(curve: Sequence[Mapping[str, Any]], metric: str, top: float) -> list[str]:
    """Scores over the part of the labels, on a logarithmic axis."""
    parts = [part["labelled"] for part in curve]
    baselines = list(curve[0]["baselines"])
    names = ["encoder", *baselines]  # a baseline may be called so too
    lines = [[_ends(part, metric) for part in curve]]
    lines += [[_ends(part["baselines"][name], metric) for part in curve] for name in baselines]
    x = Axis(min(parts), max(parts), LEFT + 12, WIDTH - RIGHT - 12, log=True)
    y = value_axis(np.array(lines).reshape(-1), top + CURVE, top, log=False)
    marks = []
    for tick in y.ticks(4):
        marks.append(f'<path class="grid" d="M{LEFT} {y.place(tick):.1f}H{WIDTH - RIGHT}"/>')
        marks.append(text(LEFT - 8, float(y.place(tick)) + 4, f"{tick:g}", "soft end"))
    for part in curve:
        marks.append(text(x.place(part["labelled"]), top + CURVE + 18, f"{100 * part['labelled']:g} %", "soft middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(text(middle, top + CURVE + 38, "labelled part of the training episodes (logarithmic)", "soft middle"))
    for number, (name, line) in reversed(list(enumerate(zip(names, lines)))):
        marks += _line(number, name, [float(x.place(part)) for part in parts], line, y)
    return [*marks, *_names(names, [float(y.place(line[-1][0])) for line in lines])]


def _line(number: int, name: str, xs: Sequence[float], line: Sequence[tuple[float, ...]], y: Axis) -> list[str]:
    ends = [[float(y.place(end)) for end in point] for point in line]
    kind, aside = f"s{number % 6}", 3 * (number - 1)  # whiskers side by side
    points = "L".join(f"{x:.1f} {value:.1f}" for x, (value, _, _) in zip(xs, ends))
    whiskers = "".join(f"M{x + aside:.1f} {low:.1f}V{high:.1f}" for x, (_, low, high) in zip(xs, ends))
    dots = (f'<circle class="f{number % 6}" cx="{x:.1f}" cy="{ends[i][0]:.1f}" r="3.5"/>' for i, x in enumerate(xs))
    return [f'<path class="line {kind}" d="M{points}"/>', f'<path class="{kind}" d="{whiskers}"/>', *dots]


def _names(names: Sequence[str], places: Sequence[float]) -> list[str]:
    """Names at the ends of their lines, moved apart where they would touch."""
    marks, last = [], -np.inf
    for number in np.argsort(places, kind="stable"):
        last = max(places[number], last + 15)
        left = WIDTH - RIGHT + 14
        marks.append(f'<circle class="f{number % 6}" cx="{left}" cy="{last:.1f}" r="4"/>')
        marks.append(text(left + 10, last + 4, names[number]))
    return marks
