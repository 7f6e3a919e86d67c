"""What every command needs before its work begins: configs by name, errors in one line, a process tuned for tensors."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.logging import RichHandler

from jepa.errors import InputError

PACKAGE = Path(__file__).parent
# an installed wheel carries the configs inside the package; a checkout has them beside it
CONFIG_ROOTS = (PACKAGE / "configs", PACKAGE.parent / "configs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def prepare() -> None:
    """Set up logging and the memory allocator, once per process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    keep_memory()


def keep_memory() -> None:
    """Tell glibc not to hand large freed tensors back to the kernel.

    It would fault every page of them in again at the next step, which makes small models train several times slower
    on virtual machines. Elsewhere than on glibc there is nothing to do.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return
    mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def find_config(name: str) -> Path:
    """A config by path, or by its name in configs/, e.g. ``pretrain/two_rooms``."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    for root in CONFIG_ROOTS:
        if (found := root / f"{name.removesuffix('.yaml')}.yaml").is_file():
            return found
    known = config_names()
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the names are {', '.join(known)}"
    raise InputError(f"no config {name!r}, neither as a path nor in configs/; {hint}")


def config_names() -> list[str]:
    """The runs that ``-c`` finds by name."""
    found = {path.relative_to(root) for root in CONFIG_ROOTS for path in root.glob("*/*.yaml")}
    return sorted(str(path.with_suffix("")) for path in found)


def resolve_configs(args: list[str]) -> list[str]:
    """Spell ``-c NAME`` out as ``--config PATH``."""
    resolved, names = [], iter(args)
    for arg in names:
        flag, equals, value = arg.partition("=")
        if flag in ("-c", "--config"):
            value = value if equals else next(names, "")
            resolved += ["--config", str(find_config(value))]
        else:
            resolved.append(arg)
    return resolved


def call(function: Callable[..., Any], args: list[str]) -> Any:
    """Parse the command line (and YAML) into the typed arguments of a function, and call it."""
    parser = ArgumentParser(
        parser_mode="omegaconf+", exit_on_error=False, description=(function.__doc__ or "").split("\n")[0]
    )
    parser.add_argument("-c", "--config", action="config", help="a YAML file with any of the arguments below")
    parser.add_argument("--vars", type=dict, default={}, help="values that the file refers to as ${vars.name}")
    names = parser.add_function_arguments(function, as_group=False, sub_configs=True)
    if args and not args[0].startswith("-"):  # a bare first word is the first argument: jepa inspect PATH
        args = [f"--{names[0]}", *args]
    config = parser.parse_args(args)
    built = parser.instantiate_classes(config)
    return function(**{name: built[name] for name in names})


@contextmanager
def parse_errors(verb: str) -> Iterator[None]:
    """Turn what the parser says of a wrong flag or config into one line."""
    try:
        yield
    except ArgumentError as error:
        raise InputError(f"{verb}: {_one_line(str(error))} (jepa {verb} --help)") from error


def _one_line(message: str) -> str:
    """The lines of a nested parser error that carry a fact, joined."""
    noise = ("Errors:", "Given value", "Expected a <class 'NoneType'>", "Does not validate against any")
    lines = [line.strip(" -") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(noise))
