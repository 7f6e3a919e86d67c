"""The figures of ``jepa inspect world``, and the one page that shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jepa.evaluation.diagnostics import Estimate
from jepa.evaluation.diagnostics_figures import landscapes_figure, lines_figure
from jepa.files import write_atomically
from jepa.tasks.storyboards import Board, sheet

STYLE = """
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: #fbfaf7; color: #1a1d21;
       font: 15px/1.5 ui-sans-serif, system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
figure { margin: 1rem 0 2rem; overflow-x: auto; } img { max-width: 100%; } table { border-collapse: collapse; }
td, th { padding: 0.25rem 0.8rem; text-align: left; border-bottom: 1px solid #e4e2dc; }
@media (prefers-color-scheme: dark) { body { background: #0f1317; color: #e8eaed; } td, th { border-color: #262d35; } }
"""


def figures(found: dict[str, Any]) -> dict[str, str]:
    """Name -> SVG of all that was measured; without landscapes where an action has one dimension."""
    steps = list(range(1, found["horizon"] + 1))
    drawn = {"rollout": _rollout(found["rollout"], steps), "ranking": _ranking(found["ranking"], steps)}
    for name in ("model", "untrained"):
        drawn[f"surprise_{name}"] = _surprise(found["surprise"], name, found["rate"])
    if found["landscapes"]:
        drawn["landscapes"] = landscapes_figure("Energy of two held action dimensions", found["landscapes"])
    return drawn


def _rollout(rollout: dict[str, Any], steps: Sequence[int]) -> str:
    lines = {
        "forecast": rollout["model"]["error"],
        "nothing changes": rollout["model"]["copy"],
        "forecast of the untrained model": rollout["untrained"]["error"],
        "nothing changes, in the latents of the untrained model": rollout["untrained"]["copy"],
    }
    note = "1 is the squared distance of two unrelated frames, in each latent space"
    return lines_figure("Open-loop rollout error", "model steps ahead", steps, lines, log=True, note=note)


def _ranking(ranking: dict[str, Any], steps: Sequence[int]) -> str:
    lines = {
        f"{'trained' if name == 'model' else name}, among {among} plans": ranking[name][among]["top1"]
        for name in ("model", "untrained")
        for among in ("recorded", "random")
    }
    title, level = "How often the true actions forecast best", {"chance": ranking["chance"]["top1"]}
    return lines_figure(title, "model steps ahead", steps, lines, level)


def _surprise(surprise: dict[str, Any], name: str, rate: float) -> str:
    part = surprise[name]
    curves: dict[str, list[Estimate]] = part["curves"]
    steps = [step - surprise["violated_step"] for step in range(len(curves["untouched"]))]
    areas: dict[str, Estimate | None] = {kind: found["auc"] for kind, found in part["violations"].items()}
    lines = {
        kind + (f", AUC {areas[kind].value:.3f}" if areas.get(kind) else ""): curve for kind, curve in curves.items()
    }
    title = "Surprise at violations" + (", untrained model" if name == "untrained" else "")
    level, note = {f"threshold for {rate:g} false alarms": part["threshold"]}, "in units of the median untouched step"
    return lines_figure(title, "steps after the violation", steps, lines, level, log=True, note=note)


def write_page(out: Path, found: dict[str, Any], boards: Sequence[Board]) -> Path:
    """Write the figures, the storyboards and world.html, which holds them all; returns the page."""
    drawn = figures(found)
    for name, svg in drawn.items():
        write_atomically(out / f"{name}.svg", lambda file, svg=svg: file.write(svg.encode()))
    buffer = io.BytesIO()
    sheet(boards).save(buffer, format="PNG")
    write_atomically(out / "storyboards.png", lambda file: file.write(buffer.getvalue()))
    strip = base64.b64encode(buffer.getvalue()).decode("ascii")
    picture = f'<img alt="storyboards: what happened above what was imagined" src="data:image/png;base64,{strip}">'
    parts = [*drawn.values(), picture]
    body = _facts(found) + _actions(found["actions"]) + "".join(f"<figure>{part}</figure>" for part in parts)
    head = f'<meta charset="utf-8"><title>World model</title><style>{STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body><h1>World model</h1>{body}</body></html>\n'
    write_atomically(out / "world.html", lambda file: file.write(page.encode()))
    return out / "world.html"


def _facts(found: dict[str, Any]) -> str:
    names = ("checkpoint", "data", "windows", "episodes", "horizon", "history", "frame_skip", "candidates")
    return _table(("setting", "value"), [(name.replace("_", " "), str(found[name])) for name in names])


def _actions(actions: dict[str, dict[str, Estimate | None]]) -> str:
    kinds = list(next(iter(actions.values())))
    rows = [
        (name.replace("_", " "), *(str(part[kind]) if part[kind] else "none" for kind in kinds))
        for name, part in actions.items()
    ]
    about = "<h2>Plans against recorded actions</h2><p>In standard deviations of the training actions.</p>"
    return about + _table(("policy", *(kind.replace("_", " ") for kind in kinds)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
