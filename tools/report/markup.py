"""Text to HTML: escaping, numbers, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tools.report.content import Score

MISSING = '<span class="missing">not measured</span>'


def tag(name: str, *inner: str, **attributes: str | float | None) -> str:
    """An element around markup that is already safe. ``class_`` is class, ``aria_label`` is aria-label."""
    pairs = ((key.strip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = "".join(f' {key}="{escape(str(value))}"' for key, value in pairs)
    return f"<{name}{opening}>{''.join(inner)}</{name}>"


def significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, without an exponent where that stays readable."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        rounded = float(f"{value:.{digits}g}")
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
        return f"{rounded:,.{decimals}f}".replace(",", "\u202f").replace("-", "\u2212")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "\u2212")


def percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0") + "\u00a0%"


def fixed(value: float) -> str:
    """Three decimals: for scores that live around one."""
    return f"{value:.3f}".replace("-", "\u2212") if abs(value) < 1000 else significant(value)


def milliseconds(value: float) -> str:
    return f"{significant(value)}\u00a0ms"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{significant(seconds, 2)}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest:02d}\u00a0s"


def number(value: float | None, form=significant) -> str:
    """A number as people read it, with the number itself in the element."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return '<span class="missing">not finite</span>'
    return tag("data", escape(form(value)), value=repr(float(value)))


def score(value: Score | None, form=fixed) -> str:
    """A score with its interval below."""
    if value is None:
        return MISSING
    if value.low is None or value.high is None:
        return number(value.value, form)
    interval = f"{number(value.low, form)} to {number(value.high, form)}"
    return f'{number(value.value, form)} <span class="interval">{interval}</span>'


def paragraph(text: str, kind: str | None = None) -> str:
    return tag("p", escape(text), class_=kind)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are markup; the first of each row is its header."""
    top = "".join(tag("th", escape(cell), scope="col") for cell in head)
    body = "".join(
        tag("tr", tag("th", cells[0], scope="row"), *(tag("td", cell) for cell in cells[1:])) for cells in rows
    )
    inner = tag("caption", escape(caption)) + tag("thead", tag("tr", top)) + tag("tbody", body)
    return tag("div", tag("table", inner), class_="scroll", tabindex="0", role="region", aria_label=caption)


def pairs(title: str, entries: Mapping[str, float | int | str]) -> str:
    """A list of names and values."""

    def shown(value: float | int | str) -> str:
        return escape(value) if isinstance(value, str) else number(value, plain)

    rows = "".join(tag("dt", escape(key)) + tag("dd", shown(value)) for key, value in entries.items())
    return tag("div", tag("h3", escape(title)), tag("dl", rows), class_="pairs") if entries else ""


def plain(value: float) -> str:
    """Whole numbers in full, others to three digits."""
    whole = float(value).is_integer() and abs(value) < 1e15
    return f"{int(value):,}".replace(",", "\u202f").replace("-", "\u2212") if whole else significant(value)
