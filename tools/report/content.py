"""What a report says: the numbers (``Report``) and the pictures (``Figures``).

Everything has a default of "nothing": a section without data says so in words on the page. Arrays are anything that
``numpy.asarray`` takes, CPU tensors included. Coordinates are the environment's own; a ``Room`` says where they lie
in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.report.plane import principal_plane

PICTURE = {"picture": True}  # field metadata: drawn on the page, left out of report.json
SECTIONS = ("training", "latents", "storyboards", "diagnostics", "plans", "probes", "planning", "timings", "reproduce")


@dataclass(frozen=True)
class Score:
    """A measured value with the ends of its 95 % interval, where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ProbeRow:
    """One probe on the trained latents, beside what it must beat. The first row of a report is its headline."""

    name: str  # "linear, position of the dot"
    metric: str  # "R2"
    trained: Score
    untrained: Score | None = None  # the same probe on the same encoder before training
    baseline: Score | None = None  # what needs no latents at all
    baseline_name: str = "mean of the training set"
    higher_is_better: bool = True
    pixels: Score | None = None  # the same probe on raw pixels, down-sampled


@dataclass(frozen=True)
class PlanningRow:
    """One policy over one evaluation protocol. The first row of a report is its headline."""

    policy: str  # "CEM over the world model"
    episodes: int
    success: Score  # fraction in 0..1, with its Wilson interval
    solved_at_start: float | None = None  # fraction in 0..1
    steps_median: float | None = None  # environment steps until success, over the successes
    p50_ms: float | None = None  # milliseconds per decision
    p95_ms: float | None = None
    floor: bool = False  # true for random, do-nothing: the first such row stands beside the headline


@dataclass(frozen=True)
class Stage:
    """One stage of the run and its wall time."""

    name: str
    seconds: float
    training: bool = False  # counts towards the minutes of training


@dataclass(frozen=True)
class Report:
    """Every number and word of a report that is not part of a figure."""

    title: str
    summary: str  # one sentence: what was done
    probes: Sequence[ProbeRow] = ()
    planning: Sequence[PlanningRow] = ()
    stages: Sequence[Stage] = ()  # in order; their sum is the run's time in all
    frames_per_second: float | None = None  # while training
    settings: Mapping[str, float | int | str] = field(default_factory=dict)  # "episodes": 500, "parameters": 1.2e6
    versions: Mapping[str, str] = field(default_factory=dict)  # "torch": "2.14.1"
    machine: Mapping[str, float | int | str] = field(default_factory=dict)  # "processor": ..., "cores": 2
    commands: Sequence[str] = ()  # what a reader types to get this report again
    notes: Mapping[str, str] = field(default_factory=dict)  # section (see SECTIONS) -> sentence shown at its top

    def __post_init__(self) -> None:
        assert set(self.notes) <= set(SECTIONS), f"notes are for {SECTIONS}, got {sorted(self.notes)}"


@dataclass(frozen=True)
class Curve:
    """One line of a panel. Values that are not finite are gaps."""

    name: str  # "train", "validation"
    steps: Any  # [n], increasing
    values: Any  # [n]

    def __post_init__(self) -> None:
        assert np.shape(self.steps) == np.shape(self.values), (np.shape(self.steps), np.shape(self.values))
        assert np.ndim(self.steps) == 1, np.shape(self.steps)


@dataclass(frozen=True)
class Panel:
    """One small chart of the training section."""

    title: str  # "SIGReg"
    curves: Sequence[Curve]
    group: str = "objectives"  # panels are shown group by group, in order of first appearance
    note: str = ""  # how to read it, in a few words
    log: bool | None = None  # logarithmic values; None: where they span more than two decades, all positive
    reference: float | None = None  # a horizontal line to compare with
    reference_name: str = ""  # what that line is: "nothing changes"


@dataclass(frozen=True)
class Room:
    """Where coordinates lie in a picture, and what stands in it."""

    left: float = 0.0  # coordinate x at the left edge of the picture
    right: float = 1.0
    top: float = 0.0  # coordinate y at the top edge: larger than ``bottom`` where y points up
    bottom: float = 1.0
    walls: Sequence[tuple[float, float, float, float]] = ()  # segments x0, y0, x1, y1; a door is a gap between two
    background: Any = field(default=None, metadata=PICTURE)  # uint8 [C,H,W], drawn faintly

    def place(self, points: Any) -> np.ndarray:
        """Coordinates ``[...,2]`` to the picture's unit square: (0, 0) is the top left."""
        points = np.asarray(points, dtype=np.float64)
        x = (points[..., 0] - self.left) / (self.right - self.left)
        y = (points[..., 1] - self.top) / (self.bottom - self.top)
        return np.stack([x, y], axis=-1)

    @property
    def aspect(self) -> float:
        """Height over width."""
        return abs(self.bottom - self.top) / abs(self.right - self.left)


@dataclass(frozen=True)
class Plane:
    """Latents on their first two principal components, turned to lie like the true positions."""

    points: Any  # [n,2]; x to the right, y down
    explained: float  # fraction of the latents' variance that the two components hold


@dataclass(frozen=True)
class LatentMap:
    """Held-out frames as the encoder sees them, coloured by where the thing really was."""

    position: Any  # [n,2] in the room's coordinates
    trained: Plane
    untrained: Plane | None = None
    room: Room = Room()
    thing: str = "dot"

    def __post_init__(self) -> None:
        planes = [plane for plane in (self.trained, self.untrained) if plane is not None]
        shapes = [np.shape(self.position)] + [np.shape(plane.points) for plane in planes]
        assert len(set(shapes)) == 1 and shapes[0][1:] == (2,), f"wants [n,2] each, got {shapes}"

    @classmethod
    def from_latents(
        cls,
        trained: Any,
        position: Any,
        untrained: Any = None,
        room: Room | None = None,
        thing: str = "dot",
        limit: int = 1200,
    ) -> LatentMap:
        """From latents ``[n,...]`` of n frames and their positions ``[n,2]``.

        The components are those of all frames; at most ``limit`` of them, evenly spaced, are drawn.
        """
        room = room or Room()
        target = room.place(position)
        keep = np.unique(np.linspace(0, len(target) - 1, min(limit, len(target))).round().astype(int))

        def plane(latents: Any) -> Plane:
            points, explained = principal_plane(latents, target)
            return Plane(points[keep], explained)

        return cls(
            position=np.asarray(position)[keep],
            trained=plane(trained),
            untrained=None if untrained is None else plane(untrained),
            room=room,
            thing=thing,
        )


@dataclass(frozen=True)
class Storyboard:
    """What happened beside what the model imagined, shown by the real frames nearest to its forecasts."""

    title: str
    real: Any = field(metadata=PICTURE)  # uint8 [n,C,H,W]
    imagined: Any = field(metadata=PICTURE)  # uint8 [n,C,H,W], retrieved
    distance: Sequence[float]  # [n] latent distance between the forecast and the latent of the retrieved frame
    steps: Sequence[int]  # [n] model steps after the last frame that the model saw
    position_error: Sequence[float] | None = None  # [n] true distance between the two frames' positions
    unit: str = ""  # of the position error

    def __post_init__(self) -> None:
        lengths = {len(self.real), len(self.imagined), len(self.distance), len(self.steps)}
        lengths |= set() if self.position_error is None else {len(self.position_error)}
        assert len(lengths) == 1, f"{self.title}: one entry per step everywhere, got lengths {sorted(lengths)}"


@dataclass(frozen=True)
class Trajectory:
    """One evaluated episode."""

    name: str  # "pair 12"
    path: Any  # [t,2] positions, the start first
    goal: Any  # [2]
    success: bool
    steps: int  # environment steps taken
    room: Room = Room()
    radius: float | None = None  # success is within this of the goal

    def __post_init__(self) -> None:
        assert np.ndim(self.path) == 2 and np.shape(self.path)[1] == 2, f"{self.name}: path {np.shape(self.path)}"


@dataclass(frozen=True)
class Diagram:
    """A figure that was drawn elsewhere and stands alone."""

    title: str
    data: bytes = field(metadata=PICTURE)
    kind: str = "svg+xml"  # or png


@dataclass(frozen=True)
class Figures:
    """The pictures of a report."""

    curves: Sequence[Panel] = ()
    warnings: Sequence[str] = ()  # what the collapse watch said; shown at the top of the page
    latents: LatentMap | None = None
    storyboards: Sequence[Storyboard] = ()
    diagnostics: Sequence[Diagram] = ()
    trajectories: Sequence[Trajectory] = ()
