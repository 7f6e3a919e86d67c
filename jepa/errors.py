"""The one error that a user is meant to see, and the suggestions that it makes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of the system's errors that mean: no room to write


class InputError(ValueError):
    """Something from outside is wrong: a flag, a config, a file, a checkpoint, an environment.

    The message is one line that says what was given, what was expected and what to do next. The command line prints
    it without a traceback and exits with code 2. Invariants inside the toolkit assert instead.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no known name is near."""
    spelled = {item.lower(): item for item in known}
    close = get_close_matches(str(name).lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise :class:`InputError` for the first given name that is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"unknown {what} {name!r}{did_you_mean(name, known)}; known: {listed}")


def check_choice(what: str, given: str, choices: Iterable[str]) -> str:
    """``given`` if it is one of the choices of an option, else an :class:`InputError`."""
    choices = list(choices)
    if given not in choices:
        hint = did_you_mean(given, choices)
        raise InputError(f"{what} was given {given!r}{hint}; expected one of {', '.join(choices)}: choose one")
    return given


def check_least(what: str, given: int | None, least: int) -> int | None:
    """``given`` if it is None or at least ``least``, else an :class:`InputError`."""
    if given is not None and given < least:
        raise InputError(f"{what} is {given}, expected at least {least}: choose another")
    return given
