"""Names that come from outside: refused with a suggestion when nobody knows them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from jepa.errors import InputError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` or an empty string."""
    spelled = {item.lower(): item for item in known}
    close = get_close_matches(str(name).lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for the first given name that is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"unknown {what} {name!r}{did_you_mean(name, known)}; known: {listed}")


def check_choice(what: str, given: str, choices: Iterable[str]) -> None:
    """Raise InputError when an option is not one of its choices."""
    choices = list(choices)
    if given not in choices:
        listed = ", ".join(choices)
        raise InputError(f"{what} was given {given!r}{did_you_mean(given, choices)}; choose one of {listed}")
