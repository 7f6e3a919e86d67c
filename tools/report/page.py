"""The page: a header with the headline, then one section for each thing to see."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from itertools import groupby

from tools.report.content import Figures, Report, Score
from tools.report.curves import chart
from tools.report.headline import Headline
from tools.report.maps import latent_map
from tools.report.markup import (
    duration,
    fixed,
    milliseconds,
    number,
    pairs,
    paragraph,
    percent,
    plain,
    score,
    table,
    tag,
)
from tools.report.pictures import diagram
from tools.report.rooms import trajectory_grid
from tools.report.script import SCRIPT
from tools.report.storyboards import storyboards
from tools.report.style import STYLE


def page(report: Report, figures: Figures) -> str:
    """The whole document."""
    sections = "".join(_section(report, figures, *entry) for entry in _SECTIONS)
    body = tag("header", _header(report, figures)) + tag("main", sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"{tag('title', escape(report.title))}<style>{STYLE}</style></head>"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _header(report: Report, figures: Figures) -> str:
    links = "".join(tag("a", escape(name), href=f"#{key}") for key, name, *_ in _SECTIONS)
    top = tag("h1", escape(report.title)) + paragraph(report.summary, "summary")
    tiles = tag("div", *_tiles(Headline.of(report)), class_="tiles")
    warnings = "".join(paragraph(text, "warning") for text in figures.warnings)
    return top + tiles + warnings + tag("nav", links, aria_label="Sections")


def _tiles(headline: Headline) -> list[str]:
    success, probe = headline.success, headline.probe
    floor = _beside(headline.floor_name, headline.floor, percent)
    return [
        _tile(
            "Planning success",
            number(success.value if success else None, percent),
            _gauge(success, headline.floor) + _interval(headline) + floor,
        ),
        _tile(
            f"Probe {headline.probe_metric}".strip(),
            number(probe.value if probe else None, fixed),
            _beside("untrained", headline.untrained, fixed) + paragraph(headline.probe_name),
        ),
        _tile(
            "One decision",
            number(headline.p50_ms, milliseconds),
            _beside("median; 95th percentile", headline.p95_ms, milliseconds),
        ),
        _tile(
            "The whole run",
            number(headline.seconds, duration),
            _beside("training", headline.training_seconds, duration),
        ),
        _tile("Training speed", number(headline.frames_per_second, plain), paragraph("frames per second")),
    ]


def _beside(name: str, value: float | None, form: Callable) -> str:
    """A smaller line of a tile, where there is something to say."""
    return "" if value is None else tag("p", f"{escape(name)} {number(value, form)}")


def _tile(name: str, big: str, rest: str) -> str:
    return tag("div", tag("h2", escape(name)), tag("p", big, class_="big"), rest, class_="tile")


def _interval(headline: Headline) -> str:
    value = headline.success
    if value is None or value.low is None or value.high is None:
        return ""
    ends = f"{number(value.low, percent)} to {number(value.high, percent)}"
    return f"<p>95\u00a0% interval {ends}, {number(headline.episodes, plain)} episodes</p>"


def _gauge(success: Score | None, floor: float | None) -> str:
    """0 to 100 % as a bar, the interval darker, the floor as a notch."""
    if success is None:
        return ""
    marks = f'<rect class="track" width="200" height="8" rx="4"/><rect class="fill" width="{200 * success.value:.1f}" '
    marks += 'height="8" rx="4"/>'
    if success.low is not None and success.high is not None:
        width = 200 * (success.high - success.low)
        marks += f'<rect class="span" x="{200 * success.low:.1f}" width="{width:.1f}" height="8"/>'
    if floor is not None:
        marks += f'<path class="notch" d="M{200 * floor:.1f} -3v14"/>'
    return tag("svg", marks, class_="gauge", viewBox="-1 -4 202 16", aria_hidden="true")


def _section(report: Report, figures: Figures, key: str, name: str, missing: str, read: str, draw: Callable) -> str:
    note = paragraph(report.notes[key], "note") if key in report.notes else ""
    content = draw(report, figures)
    explained = paragraph(read, "read") if content else ""
    return tag("section", tag("h2", escape(name)), explained, note, content or paragraph(missing, "missing"), id=key)


def _training(report: Report, figures: Figures) -> str:
    order = list(dict.fromkeys(panel.group for panel in figures.curves))
    grouped = groupby(sorted(figures.curves, key=lambda panel: order.index(panel.group)), lambda panel: panel.group)
    groups = (tag("h3", escape(name)) + tag("div", *map(chart, panels), class_="charts") for name, panels in grouped)
    return "".join(groups)


def _latents(report: Report, figures: Figures) -> str:
    return latent_map(figures.latents) if figures.latents else ""


def _storyboards(report: Report, figures: Figures) -> str:
    return storyboards(figures.storyboards)


def _diagnostics(report: Report, figures: Figures) -> str:
    return "".join(diagram(each) for each in figures.diagnostics)


def _plans(report: Report, figures: Figures) -> str:
    return trajectory_grid(figures.trajectories) if len(figures.trajectories) else ""


def _probes(report: Report, figures: Figures) -> str:
    rows = [
        (
            escape(row.name),
            f"{escape(row.metric)} {'↑' if row.higher_is_better else '↓'}",
            f"<strong>{score(row.trained)}</strong>",
            score(row.untrained),
            score(row.pixels),
            score(row.baseline) + (f"<small>{escape(row.baseline_name)}</small>" if row.baseline else ""),
        )
        for row in report.probes
    ]
    head = ("Probe", "Score", "Trained", "Untrained", "Raw pixels", "Baseline")
    return table("Probes on frozen latents of held-out episodes", head, rows) if rows else ""


def _planning(report: Report, figures: Figures) -> str:
    rows = [
        (
            escape(row.policy) + (" <small>floor</small>" if row.floor else ""),
            number(row.episodes, plain),
            f"<strong>{score(row.success, percent)}</strong>",
            number(row.solved_at_start, percent),
            number(row.steps_median, plain) if row.success.value > 0 else "no success",
            number(row.p50_ms, milliseconds),
            number(row.p95_ms, milliseconds),
        )
        for row in report.planning
    ]
    head = ("Policy", "Episodes", "Success", "Solved at start", "Steps, median", "Decision, p50", "Decision, p95")
    return table("Policies on the same start and goal pairs", head, rows) if rows else ""


def _timings(report: Report, figures: Figures) -> str:
    total = sum(stage.seconds for stage in report.stages)
    rows = [
        (
            escape(stage.name) + (" <small>training</small>" if stage.training else ""),
            number(stage.seconds, duration),
            f'<i class="bar" style="width:{100 * stage.seconds / (total or 1):.1f}%"></i>',
        )
        for stage in report.stages
    ]
    return table("Wall time of each stage", ("Stage", "Time", "Share"), rows) if rows else ""


def _reproduce(report: Report, figures: Figures) -> str:
    shell = tag("pre", tag("code", escape("\n".join(report.commands))), tabindex="0") if report.commands else ""
    lists = (("Settings", report.settings), ("Machine", report.machine), ("Versions", report.versions))
    boxes = "".join(pairs(title, entries) for title, entries in lists)
    return (tag("div", shell, class_="shell") if shell else "") + (tag("div", boxes, class_="boxes") if boxes else "")


_SECTIONS = (  # key, name, words when there is nothing to show, how to read it, how to draw it
    (
        "training",
        "Training",
        "No training curve was recorded in this run.",
        "Every objective and the collapse watch over optimiser steps. Point at a chart to read values.",
        _training,
    ),
    (
        "latents",
        "What the latents know",
        "No map of the latents was made in this run.",
        "Each point is one held-out frame, placed by its latent alone and coloured by where the thing really was. "
        "Smooth colours mean that near places have near latents. Point at a frame to find it in every panel.",
        _latents,
    ),
    (
        "storyboards",
        "What the model imagines",
        "No imagined rollout was recorded in this run.",
        "From one frame and a list of actions the model forecasts latents, never pixels. Each forecast is shown by "
        "the real frame whose latent is nearest to it; the number below is the latent distance between the two.",
        _storyboards,
    ),
    (
        "diagnostics",
        "Is it worth planning with",
        "The forecasts of the model were not examined in this run.",
        "On held-out episodes, beside the model before its training: how errors grow with the horizon, how often the "
        "true actions forecast what happened best, what surprises the model, and what actions it believes lead to a "
        "goal.",
        _diagnostics,
    ),
    (
        "plans",
        "Where the plans went",
        "No planned trajectory was recorded in this run.",
        "Evaluated episodes seen from above. One bead is one step.",
        _plans,
    ),
    (
        "probes",
        "Probes",
        "No probe was fitted in this run.",
        "Small models read the frozen latents. The same probe on the untrained encoder and on raw pixels shows what "
        "training added. An arrow up means that more is better; intervals are 95\u00a0%.",
        _probes,
    ),
    (
        "planning",
        "Planning",
        "No policy was evaluated in this run.",
        "Success with its 95\u00a0% interval; the floors say how much of it is luck.",
        _planning,
    ),
    ("timings", "Timings", "No stage was timed in this run.", "Wall time, stage by stage.", _timings),
    (
        "reproduce",
        "Do it again",
        "Neither commands nor versions were recorded in this run.",
        "The commands, settings and versions behind every number above; report.json holds the numbers.",
        _reproduce,
    ),
)
