"""What a user installs: ranges and pins agree, every config is shipped, and the front door opens quickly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jepa

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")
# `make` installs this one without its dependencies, for the reason that the Makefile gives
BY_MAKE = "gym-pusht"


@pytest.fixture(scope="module")
def declared() -> dict:
    """The arguments of setup() in setup.py."""
    caught: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: caught.update(arguments))
        patch.chdir(ROOT)
        exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return caught


def pins() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    made = re.findall(rf"{BY_MAKE}==\S+", (ROOT / "Makefile").read_text())
    return [Requirement(line) for line in (*lines, *made) if line]


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"requirements.txt must pin {pin}"
    return specifier.version


@pytest.mark.parametrize("python", PYTHONS)
def test_ranges_and_pins_agree(declared, python):
    """`dev` is left out: no command of ours runs it."""
    extras = declared["extras_require"]
    asked = [Requirement(line) for line in (*declared["install_requires"], *extras["robots"], *extras["test"])]
    machine = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": "x86_64"}
    fixed = {canonicalize_name(pin.name): pin for pin in pins() if pin.marker is None or pin.marker.evaluate(machine)}
    for requirement in asked:
        pin = fixed.get(canonicalize_name(requirement.name))
        assert pin is not None, f"setup.py asks for {requirement}, which requirements.txt does not pin"
        assert version(pin) in requirement.specifier, f"{pin} is outside of setup.py's {requirement}"
        assert pin.extras == requirement.extras, f"{pin} and {requirement} name different extras"


def test_a_pin_is_given_once(declared):
    for python in PYTHONS:
        names = [p.name for p in pins() if p.marker is None or p.marker.evaluate({"python_version": python})]
        assert len(names) == len(set(names)), f"a package is pinned twice for Python {python}: {sorted(names)}"


def test_the_version_is_written_once(declared):
    assert declared["version"] == jepa.__version__
    written = re.compile(rf"""version\w*\s*=\s*["']{re.escape(jepa.__version__)}["']""", re.IGNORECASE)
    sources = [*ROOT.glob("*.py"), *ROOT.glob("*.cfg"), *ROOT.glob("*.toml")]
    sources += [path for top in ("jepa", "probes", "tools") for path in (ROOT / top).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in sources if written.search(path.read_text())]
    assert found == ["jepa/__init__.py"]


def test_every_file_of_a_package_is_shipped(declared):
    """Python files by their package, everything else by package_data."""
    shipped: set[Path] = set()
    for package in declared["packages"]:
        folder = ROOT / declared["package_dir"].get(package, package.replace(".", "/"))
        assert folder.is_dir(), f"setup.py names the package {package}, but there is no {folder}"
        shipped |= set(folder.glob("*.py"))
        for pattern in declared["package_data"].get(package, ()):
            shipped |= set(folder.glob(pattern))
    there = {
        path
        for top in ("jepa", "probes", "tools", "configs")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert any(path.suffix == ".yaml" for path in there)
    assert sorted(map(str, there - shipped)) == []


def python(code: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("args", [("--help",), ("-h",), (), ("--version",), ("pretain",)])
def test_the_front_door_opens_without_the_heavy_imports(args):
    code = (
        "import sys; from jepa.cli import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'numpy', 'timm', 'jsonargparse', 'rich'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = python(code, *args)
    assert done.returncode == 0, done.stderr


def test_help_and_version_name_what_there_is():
    from jepa.cli import FUNCTIONS, HELP, TRAINER_VERBS

    shown = python("from jepa.cli import main; main(['--help'])").stdout
    assert shown.strip() == HELP.strip()
    missing = [verb for verb in (*TRAINER_VERBS, *FUNCTIONS) if not re.search(rf"\b{verb}\b", shown)]
    assert not missing, f"--help does not name {missing}"
    assert python("from jepa.cli import main; main(['--version'])").stdout.strip() == jepa.__version__


@pytest.mark.parametrize(
    ("verb", "hint"),
    [("colect", "did you mean 'collect'?"), ("Plan", "did you mean 'plan'?"), ("xyzzy", "the verbs are")],
)
def test_an_unknown_verb_is_one_line_and_code_2(capsys, verb, hint):
    from jepa.cli import main

    assert main([verb]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert repr(verb) in err and hint in err
