"""What a report shows of given numbers: one row of a table, lines of text, and a picture that stands alone."""

from __future__ import annotations

import json
import os
from xml.etree import ElementTree

import pytest

from jepa.errors import InputError
from probes import report as report_module
from probes.figure import LEFT, RIGHT, WIDTH, figure
from probes.linear import LinearProbe
from probes.report import ProbeReport
from probes.task import probe

SPACE = "{http://www.w3.org/2000/svg}"


def scores(value: float, low: float | None = None, high: float | None = None, **more: object) -> dict:
    return {"r2": value, "r2_interval": None if low is None else [low, high], **more}


def made(**changes: object) -> ProbeReport:
    gain = {"gain": 0.5, "gain_interval": [0.4, 0.6]}
    names = {"untrained": scores(0.4, 0.3, 0.5, **gain), "<pixels>": scores(-3.0, -9.0, -1.0, **gain)}
    parts = [
        {"labelled": part, "episodes": {"train": 9}, "baselines": names, **scores(value, value - 0.1, value + 0.05)}
        for part, value in ((0.01, 0.2), (0.1, 0.7), (1.0, 0.9))
    ]
    about = {"probe": "probes.linear.LinearProbe", "target": "x,y", "metric": "r2", "episodes": {"test": 50}}
    given = {"seeds": [{}] * 3, "selected": None, "published": None, "baselines": names, "curve": parts}
    return ProbeReport(about | scores(0.9, 0.8, 0.95) | given | changes)


def drawn(report: ProbeReport) -> ElementTree.Element:
    return ElementTree.fromstring(figure(report))


def test_the_row_is_one_row_of_a_table():
    head, rule, row = made().row.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, rule, row)]
    assert len({len(line) for line in cells}) == 1 and set(cells[1]) == {"---"}
    assert dict(zip(cells[0], cells[2])) == {
        "probe": "LinearProbe",
        "target": "x,y",
        "score": "r2",
        "encoder": "0.900 [0.800, 0.950]",
        "untrained": "0.400 [0.300, 0.500]",
        "gain over untrained": "0.500 [0.400, 0.600]",
        "<pixels>": "-3.000 [-9.000, -1.000]",
        "gain over <pixels>": "0.500 [0.400, 0.600]",
        "test episodes": "50",
        "seeds": "3",
    }


def test_a_name_may_hold_a_bar_and_nothing_is_minus_zero():
    gain = {"gain": -0.0001, "gain_interval": [-0.0002, 0.0]}
    head, _, row = made(baselines={"a|b": scores(0.9, 0.8, 0.95, **gain)}).row.splitlines()
    assert r"| a\|b | gain over a\|b |" in head and "| 0.000 [0.000, 0.000] |" in row


def test_the_text_names_what_flatters():
    published = {"score": 0.93, "rule": report_module.PUBLISHED}
    told = str(made(selected={"score": 0.9, "rule": report_module.RULE}, published=published)).splitlines()
    assert told[0] == "LinearProbe of x,y: r2 0.900 [0.800, 0.950] on 50 test episodes, 3 seeds"
    assert "  head that is best on held-out training episodes: 0.900" in told
    assert "  maximum over heads on the test split, as published (flatters): 0.930" in told
    assert told[-1].startswith("  100 % of the labels (9 episodes): 0.900 [0.800, 0.950], untrained 0.400")


def test_bars_are_as_long_as_their_scores_and_whiskers_as_their_intervals():
    root = drawn(made(baselines={"untrained": scores(0.4, 0.3, 0.5)}, curve=[]))
    bars = [(float(bar.get("x")), float(bar.get("width"))) for bar in root.iter(f"{SPACE}rect")]
    width = WIDTH - LEFT - RIGHT
    assert bars == [pytest.approx((LEFT, 0.9 * width), abs=0.1), pytest.approx((LEFT, 0.4 * width), abs=0.1)]
    spans = [path.get("d") for path in root.iter(f"{SPACE}path") if path.get("class") == "span"]
    ends = [float(span[1:].split()[0]) for span in spans]
    assert ends == [pytest.approx(LEFT + 0.8 * width, abs=0.1), pytest.approx(LEFT + 0.3 * width, abs=0.1)]


def test_a_score_far_below_zero_is_cut_but_told():
    root = drawn(made())
    places = [float(value) for bar in root.iter(f"{SPACE}rect") for value in (bar.get("x"), bar.get("width"))]
    assert min(places) >= 0 and max(places) <= WIDTH
    words = [text.text or "" for text in root.iter(f"{SPACE}text")]
    assert any("-3.000" in text for text in words) and any(text.endswith("; cut at -1") for text in words)
    whole = drawn(made(baselines={}, curve=[]))
    assert not any("cut at" in (text.text or "") for text in whole.iter(f"{SPACE}text"))


def test_the_curve_has_a_line_for_each_and_equal_steps_for_equal_factors():
    root = drawn(made())
    lines = {path.get("class"): path.get("d") for path in root.iter(f"{SPACE}path") if "line" in path.get("class", "")}
    assert set(lines) == {"line s0", "line s1", "line s2"}
    first, second, third = (float(point.split()[0]) for point in lines["line s0"][1:].split("L"))
    assert second - first == pytest.approx(third - second, abs=0.2)
    words = {text.text for text in root.iter(f"{SPACE}text")}
    assert {"1 %", "10 %", "100 %", "encoder", "untrained", "<pixels>"} <= words
    assert not [path for path in drawn(made(curve=[])).iter(f"{SPACE}path") if "line" in path.get("class", "")]


def test_a_baseline_may_be_called_encoder():
    parts = [{**part, "baselines": {"encoder": scores(0.1, 0.0, 0.2)}} for part in made()["curve"]]
    root = drawn(made(baselines={"encoder": scores(0.1, 0.0, 0.2)}, curve=parts))
    lines = {path.get("class"): path.get("d") for path in root.iter(f"{SPACE}path") if "line" in path.get("class", "")}
    heights = {name: [float(point.split()[1]) for point in line[1:].split("L")] for name, line in lines.items()}
    assert len(set(heights["line s0"])) == 3 and len(set(heights["line s1"])) == 1, "only the encoder's scores change"
    assert min(heights["line s1"]) > max(heights["line s0"])


@pytest.mark.parametrize("interval", [None, [0.5, 0.9]])
def test_the_picture_stands_alone_whatever_was_measured(interval):
    floor = {"accuracy": 0.8, "accuracy_interval": interval, "accuracy_of_most_common": 0.5}
    other = {"recall_at_5": 0.8, "recall_at_5_interval": interval}
    for metric, numbers in (("accuracy", floor), ("recall_at_5", other)):
        text = figure(made(metric=metric, baselines={}, curve=[], seeds=[{}], **numbers))
        root = ElementTree.fromstring(text)
        assert root.get("aria-label") and "0.800" in root.get("aria-label")
        assert "href" not in text and "prefers-color-scheme: dark" in text and text.count("http") == 1


def test_a_failed_write_leaves_the_earlier_report(cache_path, tmp_path, monkeypatch):
    probe(cache_path, LinearProbe(), "x", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module.os, "replace", full)
    with pytest.raises(InputError, match="cannot write the report to .*No space left on device"):
        probe(cache_path, LinearProbe(), "y", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others_is_refused_before_the_work(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written"):
        report_module.check_writable(tmp_path / "theirs/out")


def test_every_number_of_the_row_is_in_the_json(cache_path, tmp_path):
    probe(cache_path, LinearProbe(), "x", tmp_path / "out", baselines={"itself": cache_path})
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert (tmp_path / "out/row.md").read_text() == ProbeReport(found).row
    assert (tmp_path / "out/figure.svg").read_text() == figure(found)
