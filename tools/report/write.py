"""Writes ``report.html`` and ``report.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa.errors import InputError
from jepa.files import replacing
from tools.report.content import Figures, Report
from tools.report.headline import Headline
from tools.report.page import page
from tools.report.rooms import tally

FORMAT = "jepa-report/1"


def write_report(report: Report, figures: Figures, out: Path) -> Path:
    """Write ``out/report.json`` and ``out/report.html``, each whole or not at all; the path of the page.

    Equal content gives equal bytes. Raises InputError where ``out`` cannot be written.
    """
    out = Path(out)
    numbers = json.dumps(as_json(report, figures), indent=1, allow_nan=False, ensure_ascii=False)
    document = page(report, figures)
    try:
        for name, text in {"report.json": numbers + "\n", "report.html": document}.items():
            with replacing(out / name) as partial:
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        advice = "free space or name another folder"
        raise InputError(f"cannot write the report to {out}: {error.strerror}; {advice}") from error
    return out / "report.html"


def as_json(report: Report, figures: Figures) -> dict[str, Any]:
    """Everything that the page shows except its pictures, as plain JSON; numbers that are not finite are null."""
    return {
        "format": FORMAT,
        "headline": _plain(asdict(Headline.of(report))),
        "trajectories": tally(figures.trajectories),
        "report": _plain(report),
        "figures": _plain(figures),
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        shown = (item for item in fields(value) if not item.metadata.get("picture"))
        return {item.name: _plain(getattr(value, item.name)) for item in shown}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(np.asarray(value).tolist())
