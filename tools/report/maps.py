"""The latents as a map, coloured by true position."""

from __future__ import annotations

import json
from html import escape

import numpy as np

from tools.report.colours import position_colours
from tools.report.content import LatentMap, Plane
from tools.report.markup import number, percent, tag
from tools.report.pictures import png
from tools.report.rooms import wall_marks

SIZE, MARGIN = 240, 14
SHADES = 14  # colours a side: points of one colour share one SVG path


def latent_map(figure: LatentMap) -> str:
    """The room with its colours, then the trained and the untrained plane."""
    true = figure.room.place(figure.position)
    panels = [("Trained", figure.trained), ("Untrained", figure.untrained)]
    planes = [(name, plane, _fit(plane.points)) for name, plane in panels if plane is not None]
    places = [(true * (SIZE, _height(figure))).round(1)] + [points.round(1) for _, _, points in planes]
    cards = [_legend(figure)] + [_card(name, plane, points, true) for name, plane, points in planes]
    if figure.untrained is None:
        cards.append(tag("p", "The untrained encoder was not measured.", class_="missing"))
    linked = json.dumps(np.concatenate(places, axis=1).tolist(), separators=(",", ":"))
    return tag("div", *cards, class_="maps", data_points=linked)


def _height(figure: LatentMap) -> float:
    return SIZE * figure.room.aspect


def _fit(points: np.ndarray) -> np.ndarray:
    """Points to the card, both directions on one scale."""
    points = np.asarray(points, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (SIZE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    return (points - (low + high) / 2) * scale + SIZE / 2


def _card(name: str, plane: Plane, points: np.ndarray, true: np.ndarray) -> str:
    svg = tag(
        "svg",
        *_dots(points, true),
        viewBox=f"0 0 {SIZE} {SIZE}",
        role="img",
        aria_label=f"{name} latents of {len(points)} frames on two principal components, coloured by true position",
    )
    share = f"{number(plane.explained, percent)} of the variance lies in this plane"
    return tag("figure", svg, tag("figcaption", tag("h4", escape(name)), tag("p", share)), class_="card map")


def _dots(points: np.ndarray, true: np.ndarray) -> list[str]:
    shades = np.clip((np.asarray(true) * SHADES).astype(int), 0, SHADES - 1)
    marks = []
    for shade in np.unique(shades, axis=0):
        red, green, blue = position_colours((shade + 0.5) / SHADES)
        mine = points[(shades == shade).all(axis=1)]
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in mine)
        marks.append(f'<path class="dots" stroke="#{red:02x}{green:02x}{blue:02x}" d="{path}"/>')
    return marks


def _legend(figure: LatentMap) -> str:
    """The room painted with the colours of its positions."""
    middle = (np.arange(64) + 0.5) / 64
    colours = position_colours(np.stack(np.meshgrid(middle, middle), axis=-1))
    height = _height(figure)
    image = f'<image href="{png(colours.transpose(2, 0, 1))}" width="{SIZE}" height="{height:.1f}" '
    svg = tag(
        "svg",
        image + 'preserveAspectRatio="none"/>',
        wall_marks(figure.room, SIZE),
        viewBox=f"0 0 {SIZE} {height:.1f}",
        role="img",
        aria_label="The room, painted with the colour that stands for each position",
    )
    caption = tag("h4", "The room") + tag("p", f"the colour of a point is where the {escape(figure.thing)} really was")
    return tag("figure", svg, tag("figcaption", caption), class_="card map")
