"""The picture of the masks: the bias that it shows is the published one, and the page stands alone."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from jepa.errors import InputError
from tools.mask_density import VIDEO, density, main, mask_density


def test_density_shows_the_bias_of_legacy_alone():
    long_range, _ = VIDEO["V-JEPA, long range"]
    found = {name: density(long_range, name, (8, 16, 16), 24, 20) for name in ("legacy", "random_subset", "packed")}
    spread = {name: (value.time.max() / value.time.min()).item() for name, value in found.items()}
    assert spread["legacy"] > 10 and spread["random_subset"] < 1.1 and spread["packed"] == pytest.approx(1)
    for value in found.values():
        assert value.time.mean().item() == pytest.approx(1) and value.rows.mean().item() == pytest.approx(1)
    assert found["packed"].context + found["packed"].target == pytest.approx(1)
    assert found["legacy"].context + found["legacy"].target < 0.85


def test_the_page_stands_alone(tmp_path, monkeypatch, capsys):
    page = tmp_path / "deep/masks.html"
    args = ["mask_density", f"--out={page}", "--batch=4", "--batches=3", "--grid=[2,8,8]"]
    monkeypatch.setattr("sys.argv", args)
    assert main() == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<svg") == 5 and "http" not in text and "src=" not in text
    HTMLParser().feed(text)
    assert [path.name for path in page.parent.iterdir()] == ["masks.html"]


def test_wrong_input_is_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mask_density", "--batch=0"])
    assert main() == 2 and "batch" in capsys.readouterr().err
    with pytest.raises(InputError, match="1 or more"):
        mask_density(batches=0)
