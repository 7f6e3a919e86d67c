"""The picture of the masks: the bias that it shows is the published one, and it stands alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jepa.errors import InputError
from tools.mask_density import LONG, density, main, mask_density, milliseconds


def test_density_shows_the_bias_of_legacy_alone():
    found = {name: density(LONG, name, (8, 16, 16), 24, 20) for name in ("legacy", "random_subset", "packed")}
    spread = {name: (value.time.max() / value.time.min()).item() for name, value in found.items()}
    assert spread["legacy"] > 10 and spread["random_subset"] < 1.1 and spread["packed"] == pytest.approx(1)
    for value in found.values():
        assert value.time.mean().item() == pytest.approx(1) and value.rows.mean().item() == pytest.approx(1)
    assert found["packed"].context + found["packed"].target == pytest.approx(1)
    assert found["legacy"].context + found["legacy"].target < 0.85


def test_the_picture_stands_alone(tmp_path):
    """The tool is run as a script, from another folder."""
    tool, out = Path(__file__).parents[2] / "tools/mask_density.py", tmp_path / "deep/masks.svg"
    flags = [f"--out={out}", "--samples=6", "--grid=[2,8,8]", "--batch_sizes=[1,3]"]
    done = subprocess.run([sys.executable, str(tool), *flags], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 3 * 2 + 2 and "ms" in lines[-2] and lines[-1] == str(out)
    assert {path.name for path in out.parent.iterdir()} == {"masks.svg"}
    root = ElementTree.fromstring(out.read_text())
    assert root.tag.endswith("svg") and "href" not in out.read_text()
    curves = [path.get("class") for path in root.iter() if path.tag.endswith("path") and "line" in path.get("class")]
    assert [curves.count(f"line s{index}") for index in range(3)] == [1 + 3 * 2] * 3  # one of each is the legend's


def test_time_is_measured_of_every_collation():
    for collation in ("random_subset", "packed", "legacy"):
        clock, processor = milliseconds(collation, (2, 8, 8), repeats=3)
        assert 0 < processor < 1000 and clock > 0


@pytest.mark.parametrize(
    ("flag", "hint"), [("--samples=0", "1 or more"), ("--batch_sizes=[0]", "1 or more"), ("--out=a.html", ".svg")]
)
def test_wrong_input_is_code_2(flag, hint, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mask_density", flag])
    assert main() == 2 and hint in capsys.readouterr().err
    with pytest.raises(InputError, match="1 or more"):
        mask_density(batch_sizes=[])
