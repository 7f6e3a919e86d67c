"""The spectrum of the latents' variance as a picture: how fast it falls tells how many directions are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jepa.axes import Axis
from jepa.svg import document, text

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 92, 44
LOWEST = 1e-8  # share of the variance below which the picture ends


def spectrum_figure(lines: Mapping[str, Sequence[float]]) -> str:
    """An SVG of the shares of the variance along the principal axes, largest first, both scales logarithmic.

    ``lines``: name of a cache -> shares; those that are zero are not drawn.
    """
    shares = {name: np.asarray(values)[np.asarray(values) > LOWEST] for name, values in lines.items()}
    lowest = min(float(values.min(initial=1.0)) for values in shares.values())
    x = Axis(1, max(2, *(len(values) for values in lines.values())), LEFT, WIDTH - RIGHT, log=True)
    y = Axis(min(lowest, 0.1), 1, HEIGHT - BOTTOM, TOP, log=True)
    marks = [*_grid(x, y), text(20, 30, "Share of the variance along each principal axis", "title")]
    for number, (name, values) in enumerate(shares.items()):
        above = 50 + 17 * number
        marks += [f'<path class="line s{number}" d="M20 {above - 4}h18"/>', text(44, above, name, "soft")]
        if len(values):
            marks.append(_line(number, x.place(np.arange(1, len(values) + 1)), y.place(values)))
    marks.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "axis", "soft middle"))
    told = "; ".join(f"{name}: {_first(values)}" for name, values in shares.items())
    return document(WIDTH, HEIGHT, f"spectrum of the variance, largest shares of {told}", "".join(marks))


def _first(values: np.ndarray) -> str:
    return ", ".join(f"{share:.3f}" for share in values[:3]) or "no variance"


def _line(number: int, xs: np.ndarray, ys: np.ndarray) -> str:
    points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys))
    return f'<path class="line s{number}" d="M{points}h0.1"/>'


def _grid(x: Axis, y: Axis) -> list[str]:
    rows = [(f"{tick:g}", float(y.place(tick))) for tick in y.ticks()]
    marks = [f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>' for _, place in rows]
    marks += [text(LEFT - 8, place + 4, name, "soft end") for name, place in rows]
    columns = [(f"{tick:g}", float(x.place(tick))) for tick in x.ticks() if float(tick).is_integer()]
    return marks + [text(place, HEIGHT - BOTTOM + 18, name, "soft middle") for name, place in columns]
