"""Planned trajectories drawn over their rooms."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from tools.report.content import Room, Trajectory
from tools.report.markup import number, plain, tag
from tools.report.pictures import png

SIZE = 100  # of a room, in SVG units
LIMIT = 120  # rooms drawn; all of them are in report.json


def wall_marks(room: Room, size: float) -> str:
    """The walls as one SVG path, for a picture ``size`` wide."""
    if not len(room.walls):
        return ""
    ends = room.place(np.asarray(room.walls, dtype=np.float64).reshape(-1, 2, 2)) * (size, size * room.aspect)
    path = "".join(f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in ends)
    return f'<path class="wall" stroke-width="{0.03 * size:.1f}" d="{path}"/>'


def tally(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """How many episodes there are and how many of them failed."""
    return {"episodes": len(trajectories), "failed": sum(not one.success for one in trajectories)}


def trajectory_grid(trajectories: Sequence[Trajectory]) -> str:
    """A summary line and the rooms: failures first, then the slowest successes."""
    ordered = sorted(trajectories, key=lambda one: (one.success, -one.steps))
    count = tally(trajectories)
    summary = f"{number(count['failed'], plain)} of {number(count['episodes'], plain)} failed"
    summary += "; failures first, then the longest paths."
    if len(ordered) > LIMIT:
        summary += f" The first {LIMIT} are drawn."
    key = "".join(f'<span><i class="mark {kind}"></i>{text}</span>' for kind, text in KEY)
    grid = tag("div", *(_room(one) for one in ordered[:LIMIT]), class_="rooms")
    return tag("p", summary) + tag("p", key, class_="legend") + grid


KEY = (
    ("start", "start"),
    ("goal", "goal"),
    ("reached", "reached"),
    ("failed", "failed (dashed)"),
)


def _room(one: Trajectory) -> str:
    state = "reached" if one.success else "failed"
    words = f"{one.name}: {'goal reached' if one.success else 'goal not reached'}, {one.steps} steps"
    svg = tag(
        "svg",
        tag("title", escape(words)),
        _background(one.room),
        wall_marks(one.room, SIZE),
        _marks(one),
        viewBox=f"0 0 {SIZE} {SIZE * one.room.aspect:.1f}",
        role="img",
        aria_label=words,
    )
    steps = number(one.steps, plain)
    caption = tag("span", escape(one.name)) + tag("b", f"{steps} steps" if one.success else "failed")
    return tag("figure", svg, tag("figcaption", caption), class_=f"room {state}")


def _background(room: Room) -> str:
    if room.background is None:
        return ""
    return f'<image class="faint" href="{png(room.background)}" width="{SIZE}" height="{SIZE * room.aspect:.1f}"/>'


def _marks(one: Trajectory) -> str:
    scale = np.array([SIZE, SIZE * one.room.aspect])
    path = one.room.place(one.path) * scale
    (x, y), (start_x, start_y) = one.room.place(one.goal) * scale, path[0]
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in path)
    halo = ""
    if one.radius is not None:
        radius = one.radius / abs(one.room.right - one.room.left) * SIZE
        halo = f'<circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
    return (
        f'{halo}<path class="path" d="M{line}"/><path class="beads" d="{_beads(path)}"/>'
        f'<circle class="start" cx="{start_x:.1f}" cy="{start_y:.1f}" r="3.4"/>'
        f'<path class="goal" d="M{x - 3.6:.1f} {y - 3.6:.1f}l7.2 7.2m0 -7.2l-7.2 7.2"/>'
    )


def _beads(path: np.ndarray) -> str:
    """One dot for each step: their spacing is the speed."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in path)
