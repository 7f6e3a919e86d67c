"""The report of a run: one self-contained ``report.html`` to look at and one ``report.json`` with its numbers.

    from tools.report import Figures, LatentMap, Report, write_report

    write_report(Report(title=..., summary=..., probes=..., planning=...), Figures(curves=...), Path("out"))
"""

from tools.report.content import (
    Curve,
    Diagram,
    Figures,
    LatentMap,
    Panel,
    Plane,
    PlanningRow,
    ProbeRow,
    Report,
    Room,
    Score,
    Stage,
    Storyboard,
    Trajectory,
)
from tools.report.write import write_report

__all__ = [
    "Curve",
    "Diagram",
    "Figures",
    "LatentMap",
    "Panel",
    "Plane",
    "PlanningRow",
    "ProbeRow",
    "Report",
    "Room",
    "Score",
    "Stage",
    "Storyboard",
    "Trajectory",
    "write_report",
]
