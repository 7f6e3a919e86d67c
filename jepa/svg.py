"""Charts as SVG text that stands alone: one style, light or dark as the reader's screen is."""

from __future__ import annotations

from html import escape

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8528f", "#a87900", "#3a96c9", "#7a5cc0", "#8a5a44", "#6b7280")
DARK = ("#56b4e9", "#f58a4b", "#2cc197", "#e29ac3", "#e6b800", "#8fd0f5", "#b09bee", "#c99a82", "#a3acb8")


def _series(colours: tuple[str, ...]) -> str:
    return " ".join(f".s{i} {{ stroke: {colour}; }} .f{i} {{ fill: {colour}; }}" for i, colour in enumerate(colours))


STYLE = f"""
svg {{ background: #fbfaf7; font: 12px ui-sans-serif, system-ui, "Segoe UI", "Liberation Sans", sans-serif; }}
text {{ fill: #1a1d21; }} .soft {{ fill: #5a636e; }} .title {{ font-size: 19px; font-weight: 600; }}
.name {{ font-size: 14px; font-weight: 600; }} .end {{ text-anchor: end; }} .middle {{ text-anchor: middle; }}
path {{ fill: none; }} .grid {{ stroke: #e4e2dc; }} .even {{ stroke: #5a636e; stroke-dasharray: 3 3; }}
.line {{ stroke-width: 2; stroke-linejoin: round; }} .span {{ stroke: #1a1d21; stroke-width: 1.5; }}
{_series(LIGHT)}
@media (prefers-color-scheme: dark) {{
  svg {{ background: #0f1317; }} text {{ fill: #e8eaed; }} .soft {{ fill: #9aa5b1; }} .grid {{ stroke: #262d35; }}
  .even {{ stroke: #9aa5b1; }} .span {{ stroke: #e8eaed; }}
  {_series(DARK)}
}}
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words at a place; ``kind`` are classes of the style: title, name, soft; end, middle."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def document(width: float, height: float, label: str, marks: str, style: str = "") -> str:
    """The whole file; ``label`` says what it shows to those who do not see it, ``style`` adds to the common one."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    named = f'role="img" aria-label="{escape(label, quote=True)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {named}><style>{STYLE}{style}</style>{marks}</svg>\n'
