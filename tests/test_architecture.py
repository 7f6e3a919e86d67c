"""The house rules, read from the syntax tree of every file: who may import whom, and what nobody does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for top in ("jepa", "probes", "tools") for path in (ROOT / top).rglob("*.py"))
LIBRARY = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tools"]

# A room imports the rooms of the lines above its own, never its neighbours on the line.
STAIRCASE = (
    ("jepa", "errors"),  # "jepa" is the version
    ("schema",),
    ("axes", "files", "masks", "metrics", "optim", "svg", "testing"),
    ("models", "objectives", "data", "envs", "planning", "retrieval", "imagination", "evaluation"),
    ("checkpoints",),
    ("runtime",),
    ("tasks", "callbacks"),
    ("cli",),
    ("probes",),
    ("tools",),
)
LEVEL = {room: level for level, rooms in enumerate(STAIRCASE) for room in rooms}
HOMES = {
    "faiss": {"jepa/retrieval.py", "probes/neighbours.py"},
    "h5py": {"jepa/data/hdf5.py"},
    "decord": {"jepa/data/decord.py"},
    "av": {"jepa/data/pyav.py"},
    "torchcodec": {"jepa/data/torchcodec.py"},
    "pyarrow": {"jepa/data/parquet.py"},
    "nevergrad": {"jepa/planning/gradient_free.py"},
}
LINES = 400


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name(path))


def room(module: str) -> str:
    """jepa.models.world -> models, probes.cache -> probes."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jepa" and len(parts) > 1 else parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, at the top or within a function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute"
            # `from jepa.envs import task` is an import of the module, `from jepa.envs import make` of the package
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                path_of = ROOT / inner.replace(".", "/")
                is_module = path_of.with_suffix(".py").is_file() or (path_of / "__init__.py").is_file()
                yield node.lineno, inner if is_module else node.module
        elif isinstance(node, ast.Call) and called(node).split(".")[-1] in ("import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, node.args[0].value


def called(node: ast.Call) -> str:
    """The dotted name that a call calls, "" where it is computed."""
    parts, target = [], node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return ".".join([target.id, *reversed(parts)]) if isinstance(target, ast.Name) else ""


def faults(files: list[Path], check) -> str:
    """What ``check(path)`` yields over all files, one per line."""
    return "\n".join(f"{name(path)}:{line}: {fault}" for path in files for line, fault in check(path))


def test_every_room_has_its_step():
    rooms = {room(name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")) for path in FILES}
    assert rooms <= set(LEVEL), f"give {sorted(rooms - set(LEVEL))} a place in STAIRCASE"


def test_rooms_import_only_downstairs():
    def check(path):
        mine = room(name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for line, module in imports(path):
            if module.split(".")[0] not in ("jepa", "probes", "tools"):
                continue
            theirs = room(module)
            if theirs != mine and LEVEL[theirs] >= LEVEL[mine]:
                yield line, f"{mine} must not import {module}"

    assert not (found := faults(FILES, check)), f"\n{found}"


def test_modules_do_not_import_in_circles():
    modules = {name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    graph = {module: {target for _, target in imports(path)} & set(modules) for module, path in modules.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in graph[module] - {module}:
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("library", HOMES)
def test_a_library_lives_in_one_place(library):
    def check(path):
        if name(path) not in HOMES[library]:
            yield from ((line, f"imports {module}") for line, module in imports(path) if room(module) == library)

    assert not (found := faults(FILES, check)), f"\n{found}"


def test_the_library_does_not_print():
    def check(path):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and called(node) == "print":
                yield node.lineno, "print"

    assert not (found := faults([p for p in LIBRARY if name(p) != "jepa/cli.py"], check)), f"\n{found}"


def unsafe(node: ast.Call) -> str | None:
    """Why a call could run code that a file brings, or None."""
    function = called(node)
    flags = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    if function == "torch.load" and flags.get("weights_only") is not True:
        return "torch.load without weights_only=True"
    if function in ("np.load", "numpy.load") and flags.get("allow_pickle", False) is not False:
        return "np.load with allow_pickle"
    if function in ("yaml.load", "yaml.full_load", "yaml.unsafe_load") or function in ("eval", "exec"):
        return function
    if function.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"):
        return function
    return None


def test_nothing_loads_what_can_run_code():
    def check(path):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and (reason := unsafe(node)):
                yield node.lineno, reason

    assert not (found := faults(FILES, check)), f"\n{found}"


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("torch.load(p, weights_only=True)", True),
        ("torch.load(p)", False),
        ("torch.load(p, weights_only=flag)", False),
        ("np.load(p)", True),
        ("np.load(p, allow_pickle=True)", False),
        ("pickle.loads(b)", False),
        ("yaml.safe_load(f)", True),
        ("yaml.load(f, Loader=yaml.SafeLoader)", False),
        ("model.eval()", True),
    ],
)
def test_the_rule_on_loading_can_fail(code, safe):
    assert (unsafe(ast.parse(code).body[0].value) is None) == safe


def test_no_bare_except_and_no_wildcard():
    def check(path):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield node.lineno, "bare except"
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield node.lineno, "wildcard import"

    assert not (found := faults(FILES, check)), f"\n{found}"


def test_files_are_small_and_named_for_what_they_hold():
    long = {name(path): count for path in FILES if (count := len(path.read_text().splitlines())) > LINES}
    assert not long, f"split these files, which have more than {LINES} lines: {long}"
    vague = [name(path) for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]
    assert not vague, f"name these for what they hold: {vague}"


def test_what_is_public_is_documented():
    """Modules, and the public classes and functions at their top. A class answers for its methods, so that an override
    does not repeat its contract; a Protocol may say it on its methods instead."""

    def documented(node):
        members = [item for item in ast.iter_child_nodes(node) if isinstance(item, ast.FunctionDef)]
        protocol = isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)
        return ast.get_docstring(node) or (protocol and any(map(ast.get_docstring, members)))

    def check(path):
        module = tree(path)
        if not ast.get_docstring(module):
            yield 1, "the module has no docstring"
        for node in module.body:
            public = isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
            if public and not documented(node):
                yield node.lineno, f"{node.name} has no docstring"

    assert not (found := faults(LIBRARY, check)), f"\n{found}"


def test_names_of_modules_resolve():
    """The staircase sees strings only where the front door dispatches: each must name a function that exists."""
    from jepa.cli import FUNCTIONS

    for target in FUNCTIONS.values():
        module, _, function = target.partition(":")
        path = ROOT / f"{module.replace('.', '/')}.py"
        path = path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
        assert path.is_file(), f"jepa.cli names {target}, but there is no {module}"
        body = tree(path).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        names |= {a.asname or a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names}
        assert function in names, f"jepa.cli names {target}, which {name(path)} does not define"
