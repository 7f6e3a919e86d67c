"""What every command needs before its work begins: configs by name, errors in one line, a process tuned for tensors."""

from __future__ import annotations

import ctypes
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from omegaconf.errors import OmegaConfBaseException
from rich.logging import RichHandler

from jepa.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parent
# an installed wheel carries the configs inside the package; a checkout has them beside it
CONFIG_ROOTS = (PACKAGE / "configs", PACKAGE.parent / "configs")
ADVISERS = ("lightning", "faiss")  # what they log below a warning is advice
NOISE = (
    ".*LightningCLI's args parameter.*",  # the verb is ours, so the arguments are passed on
    ".*does not have many workers.*",  # small datasets are read from memory
    ".*LeafSpec.*",
    ".*irectory .* exists and is not empty.*",  # a resumed run
    ".*overridden `on_before_batch_transfer`.*",  # masks are drawn there, which the data knows nothing of
    ".*Detected pickle protocol.*",  # a checkpoint that is refused
)
PARSER_NOISE = ("Errors:", "Given value", "Expected a <class 'NoneType'>", "Does not validate against any", "Subtypes:")
MISSPELT = (  # how the parser names a key that it does not know, on the command line and in a file
    r"unrecognized arguments: --([\w.]+)",
    r"Group '([\w.]+)' does not accept option '([\w.]+)'",
    r"^Option '([\w.]+)' is not accepted",
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def prepare() -> None:
    """Set up logging and the memory allocator, once per process."""
    handler = RichHandler(show_path=False)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or not record.name.startswith(ADVISERS))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
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
        return _check_mapping(path)
    for root in CONFIG_ROOTS:
        if (found := root / f"{name.removesuffix('.yaml')}.yaml").is_file():
            return _check_mapping(found)
    known = config_names()
    hint = did_you_mean(name, known) or f"; the names are {', '.join(known)}"
    raise InputError(f"no config {name!r}{hint}: expected a path that ends in .yaml, or a name in configs/")


def _read_yaml(path: Path) -> tuple[str, Any]:
    """The text of a file, and what it says."""
    try:
        text = path.read_text()
        return text, yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}); correct it there") from error


def _check_mapping(path: Path) -> Path:
    _, tree = _read_yaml(path)
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise InputError(f"{path} holds {kind}, expected keys and values; see {', '.join(config_names()[:3])}, ...")
    return path


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
    _check_vars(resolved)
    return resolved


def _check_vars(args: list[str]) -> None:
    """InputError for a flag ``--vars.NAME`` that no file has or refers to: it would change nothing."""
    given = [re.split("[.=]", arg)[1] for arg in args if arg.startswith("--vars.")]
    files = [Path(value) for arg in args if (value := arg.rpartition("=")[2]).endswith((".yaml", ".yml"))]
    if not given or not files:
        return
    known: set[str] = set()
    for path in files:
        known |= _vars_of(path, ())
    for name in given:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise InputError(f"no config refers to ${{vars.{name}}}{did_you_mean(name, known)}; known: {listed}")


def _vars_of(path: Path, above: tuple[Path, ...]) -> set[str]:
    """Names of the vars that a file and the files that it names have or refer to."""
    if path in above or not path.is_file():  # the parser says what is wrong there
        return set()
    text, tree = _read_yaml(path)
    own = tree.get("vars") or {} if isinstance(tree, dict) else {}
    parts = (path.parent / name for name in re.findall(r"[\w./-]+\.ya?ml\b", text))
    return set(own).union(re.findall(r"\$\{vars\.(\w+)", text), *(_vars_of(part, (*above, path)) for part in parts))


def call(function: Callable[..., Any], args: list[str], verb: str = "") -> Any:
    """Parse the command line (and YAML) into the typed arguments of a function, and call it.

    Args:
        function: what the verb does
        args: the command line behind the verb
        verb: as it is typed; by default the function's name
    """
    parser = ArgumentParser(
        prog="jepa " + (verb or function.__name__.replace("_", " ")),
        parser_mode="omegaconf+",
        exit_on_error=False,
        allow_abbrev=False,
        description=(function.__doc__ or "").split("\n")[0],
    )
    parser.add_argument("-c", "--config", action="config", help="a YAML file with any of the arguments below")
    parser.add_argument("--vars", type=dict, default={}, help="values that the file refers to as ${vars.name}")
    names = parser.add_function_arguments(function, as_group=False, sub_configs=True)
    args = _switch_on(function, _name_words(function, names, args))
    with parse_errors(parser):
        built = parser.instantiate(parser.parse_args(args))
    return function(**{name: built[name] for name in names})


def _name_words(function: Callable[..., Any], names: list[str], args: list[str]) -> list[str]:
    """Bare first words are the first argument and the required ones after it: jepa inspect PATH, plan --compare A B."""
    parameters = inspect.signature(function).parameters
    required = [name for name in names[1:] if parameters[name].default is inspect.Parameter.empty]
    words = list(takewhile(lambda arg: not arg.startswith("-"), args))
    named = [f"--{name}={word}" for name, word in zip([*names[:1], *required], words)]
    return named + args[len(named) :]


def _switch_on(function: Callable[..., Any], args: list[str]) -> list[str]:
    """A bare flag of a truth value is true: ``--force`` is ``--force=true``."""
    parameters = inspect.signature(function).parameters
    switches = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation in ("bool", bool)}
    following = [*args[1:], "-"]
    return [f"{arg}=true" if arg in switches and after.startswith("-") else arg for arg, after in zip(args, following)]


@contextmanager
def parse_errors(parser: ArgumentParser) -> Iterator[None]:
    """Turn what the parser says of a wrong flag or config into one line."""
    try:
        yield
    except (ArgumentError, OmegaConfBaseException) as error:
        known = [action.dest for action in parser._actions]
        raise InputError(f"{_one_line(str(error), known)} ({parser.prog} --help)") from error
    except ValueError as error:
        if (complaint := _complaint(error)) is None:
            raise
        raise complaint


def _complaint(error: BaseException | None) -> InputError | None:
    """What a class said of its arguments when the parser built it, beneath what the parser says of that."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def _one_line(message: str, known: list[str]) -> str:
    """The innermost cause of a nested parser error, and what would have been accepted."""
    lines = [line.strip(" -") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(PARSER_NOISE))
    if missing := re.match(r"Interpolation key 'vars\.(\w+)' not found", text):
        return f"the config refers to ${{vars.{missing[1]}}}, which is not set: give --vars.{missing[1]}=..."
    if nested := list(re.finditer(r"Problem with given class_path '([\w.]+)': ", text)):
        return _wrong_class(nested[-1][1], text[nested[-1].end() :])
    for pattern in MISSPELT:
        if given := re.search(pattern, text):
            name = ".".join(part for part in given.groups() if part)
            return f"unknown key {name!r}{did_you_mean(name, known)}"
    return text


def _wrong_class(class_path: str, cause: str) -> str:
    """What is wrong with a part that is named by its class."""
    module, _, name = class_path.rpartition(".")
    if "has no attribute" in cause:
        return f"there is no {class_path}{did_you_mean(name, vars(import_module(module)))}"
    if (unknown := re.match(r"Option '(\w+)' is not accepted", cause)) is None:
        return f"{class_path}: {cause}"
    known = list(inspect.signature(getattr(import_module(module), name)).parameters)
    return f"{class_path} has no option {unknown[1]!r}{did_you_mean(unknown[1], known)}; it takes {', '.join(known)}"
