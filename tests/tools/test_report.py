"""The report page: well-formed, self-contained, escaped, complete, and the same twice."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.axes import Axis, value_axis
from jepa.errors import InputError
from tools.report import (
    Curve,
    Diagram,
    Figures,
    LatentMap,
    Panel,
    PlanningRow,
    ProbeRow,
    Report,
    Room,
    Score,
    Stage,
    Storyboard,
    Trajectory,
    write_report,
)
from tools.report.colours import CORNERS, position_colours
from tools.report.content import SECTIONS
from tools.report.curves import _thin
from tools.report.markup import duration, significant
from tools.report.plane import principal_plane

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '<script>alert("x")</script>&'


class Reader(HTMLParser):
    """Collects elements and text, and asserts that every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made_report(name: str = "linear, position") -> Report:
    return Report(
        title=f"Two Rooms, {name}",
        summary=f"Trained, probed and planned: {name}.",
        probes=[ProbeRow(name, "R2", Score(0.9913, 0.9904, 0.9921), Score(0.623), Score(0.0), name)],
        planning=[
            PlanningRow(name, 60, Score(58 / 60, 0.886, 0.991), 0.0, 21.5, 43.21, 61.7),
            PlanningRow("random", 60, Score(4 / 60, 0.026, 0.159), floor=True),
        ],
        stages=[Stage("collect", 21.25), Stage(name, 224.75, training=True)],
        frames_per_second=6512.25,
        settings={"episodes": 500, name: 1234.5},
        versions={"torch": "2.14.1", "name": name},
        machine={"processor": name, "cores": 2},
        commands=["make demo", name],
        notes={"probes": f"A note about {name}."},
    )


def made_figures(name: str = "train") -> Figures:
    rng = np.random.default_rng(0)
    steps, position = np.arange(700), rng.uniform(size=(90, 2))
    room = Room(walls=[(0.5, 0.0, 0.5, 0.23), (0.5, 0.47, 0.5, 1.0)], background=np.zeros((3, 8, 8), np.uint8))
    frames = torch.from_numpy(rng.integers(0, 255, (4, 3, 8, 8), dtype=np.uint8))
    path = rng.uniform(size=(5, 2))
    return Figures(
        curves=[
            Panel(name, [Curve(name, steps, np.exp(-steps / 90.0))], note=name),
            Panel("RankMe", [Curve("mean", [0, 9], [3.0, 14.0])], "collapse", reference=32, reference_name=name),
        ],
        warnings=[f"RankMe fell: {name}"],
        latents=LatentMap.from_latents(torch.rand(90, 1, 1, 16), position, torch.rand(90, 16), room, thing=name),
        storyboards=[Storyboard(name, frames, frames, [0.1, 0.2, 0.3, 0.4], range(4), [0.0, 0.01, 0.02, 0.03], name)],
        diagnostics=[Diagram(name, b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"), Diagram(name, b"?", "png")],
        trajectories=[
            Trajectory("slow", path, path[-1], True, 40, room, 0.06),
            Trajectory(name, path, [0.9, 0.9], False, 80, room, 0.06),
            Trajectory("quick", path, path[-1], True, 4, room, 0.06),
        ],
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, dict]:
    torch.manual_seed(0)
    path = write_report(made_report(), made_figures(), tmp_path)
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8"), json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def leaves(tree) -> list[float]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in leaves(value)]
    return [float(tree)] if isinstance(tree, (int, float)) and not isinstance(tree, bool) else []


def test_page_is_well_formed_and_needs_nothing_from_outside(written):
    page, _ = written
    reader = Reader(page)
    assert [each["id"] for each in reader.named("section")] == list(SECTIONS)
    assert not re.search(r"@import|url\(|<link|<iframe", page)
    addresses = [each[key] for _, each in reader.elements for key in ("src", "href") if key in each]
    inside = ("data:image/png;base64,", "data:image/svg+xml;base64,", "#")
    assert addresses and all(value.startswith(inside) for value in addresses)
    namespaces = {match for match in re.findall(r"https?://[^\s'\"<]*", page)}
    assert namespaces <= {"http://www.w3.org/2000/svg"}, namespaces


def test_pictures_have_words_and_hold_the_frames(written):
    reader = Reader(written[0])
    assert all(each.get("alt") for each in reader.named("img"))
    for svg in reader.named("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true", svg
    first = base64.b64decode(reader.named("img")[0]["src"].partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(first))).transpose(2, 0, 1)
    assert np.array_equal(shown, made_figures().storyboards[0].real[0].numpy())


def test_every_number_of_the_page_is_in_the_json(written):
    page, numbers = written
    known = leaves(numbers)
    shown = [float(each["value"]) for each in Reader(page).named("data")]
    assert len(shown) > 50
    missing = [value for value in shown if not any(math.isclose(value, one) for one in known)]
    assert not missing, missing
    assert numbers["format"] == "jepa-report/1"
    assert numbers["headline"]["success"]["value"] == 58 / 60 and numbers["headline"]["floor"] == 4 / 60
    assert numbers["headline"]["seconds"] == 246.0 and numbers["headline"]["training_seconds"] == 224.75
    assert len(numbers["figures"]["curves"][0]["curves"][0]["values"]) == 700
    assert "real" not in numbers["figures"]["storyboards"][0]


def test_text_is_escaped_everywhere(tmp_path):
    page = write_report(made_report(EVIL), made_figures(EVIL), tmp_path).read_text(encoding="utf-8")
    reader = Reader(page)
    assert EVIL not in page and page.count("<script>") == 1 == len(reader.named("script"))
    assert sum(EVIL in text for tag, text in reader.texts if tag not in ("script", "style")) > 15


def test_missing_sections_say_so(tmp_path):
    page = write_report(Report("Nothing", "Nothing was done."), Figures(), tmp_path).read_text(encoding="utf-8")
    reader = Reader(page)
    assert [each["id"] for each in reader.named("section")] == list(SECTIONS)
    said = [text for tag, text in reader.texts if tag == "p" and "in this run." in text]
    assert len(said) == len(SECTIONS) == len(set(said))
    assert sum(text == "not measured" for _, text in reader.texts) == 5  # one for each tile


def test_values_that_are_not_finite_are_words_and_null(tmp_path):
    report = replace(made_report(), probes=[ProbeRow("linear", "R2", Score(float("nan")))])
    panel = Panel("loss", [Curve("train", [0, 1, 2], [1.0, float("inf"), 0.5]), Curve("none", [0], [float("nan")])])
    page = write_report(report, Figures(curves=[panel, Panel("empty", [])]), tmp_path).read_text(encoding="utf-8")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["figures"]["curves"][0]["curves"][0]["values"] == [1.0, None, 0.5]
    assert "not finite" in page and "No value was logged." in page
    drawn = json.loads(Reader(page).named("svg")[1]["data-curves"])
    assert [(name, [point[2] for point in points]) for name, points in drawn] == [("train", ["0", "2"])]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(0)
        write_report(made_report(), made_figures(), tmp_path / name)
    for file in ("report.html", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_failed_write_keeps_the_old_report_and_nothing_partial(tmp_path, monkeypatch):
    write_report(made_report(), made_figures(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jepa.files.os.replace", full)
    with pytest.raises(InputError, match="cannot write the report to .*No space left on device"):
        write_report(made_report("other"), Figures(), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_failures_come_first_then_the_longest(written):
    names = re.findall(r"<title>(\w+): goal", written[0])
    assert names == ["train", "slow", "quick"]
    assert re.search(r'value="1.0">1</data> of <data value="3.0">3</data> failed', written[0])


def test_room_places_coordinates_with_y_up_and_down():
    assert Room().place([0.25, 0.75]).tolist() == [0.25, 0.75]
    up = Room(left=-1, right=1, top=2, bottom=0)
    assert up.place([[-1, 2], [1, 0], [0, 1.5]]).tolist() == [[0, 0], [1, 1], [0.5, 0.25]]
    assert up.aspect == 1.0


def test_principal_plane_recovers_a_rotated_square():
    rng = np.random.default_rng(0)
    position = rng.uniform(size=(300, 2))
    basis, _ = np.linalg.qr(rng.normal(size=(32, 2)))
    points, explained = principal_plane(5 * position @ basis.T + 3, position)
    assert explained == pytest.approx(1.0)
    assert np.allclose(points, 5 * (position - position.mean(axis=0)), atol=1e-9)


def test_principal_plane_keeps_the_distances_of_the_components():
    rng = np.random.default_rng(1)
    latents, target = rng.normal(size=(80, 8)), rng.uniform(size=(80, 2))
    points, explained = principal_plane(latents, target)
    variances = np.sort(np.linalg.eigvalsh(np.cov(latents.T)))[::-1]
    assert np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1] == pytest.approx(variances[:2])
    assert explained == pytest.approx(variances[:2].sum() / variances.sum())


def test_position_colours_hit_the_corners_and_order_lightness():
    corners = position_colours(np.array([[[0, 1], [1, 1]], [[0, 0], [1, 0]]], dtype=float))
    assert np.abs(corners.astype(int) - CORNERS).max() <= 1
    column = position_colours(np.stack([np.full(9, 0.5), np.linspace(1, 0, 9)], axis=1)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(column) > 0).all()


def test_thinning_keeps_ends_and_spikes():
    values = np.zeros(5000)
    values[3333] = 7.0
    steps, kept = _thin(np.arange(5000), values)
    assert len(kept) < 400 and kept.max() == 7.0 and steps[0] == 0 and steps[-1] == 4999


@pytest.mark.parametrize("values", [[0.0, 1.0], [3.0, 3.0], [0.0, 0.0], [-2.0, 5.0], [1e-6, 1e3], [5.0, 900.0]])
def test_axis_holds_its_values_and_has_ticks(values):
    axis = value_axis(np.array(values), 150, 8)
    assert all(8 <= axis.place(value) <= 150 for value in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8 and all(axis.low * (1 - 1e-9) <= t <= axis.high * (1 + 1e-9) for t in ticks if t > 0)
    assert axis.log == (values[0] > 0 and values[1] / values[0] > 100)


def test_axis_is_linear_or_logarithmic():
    assert Axis(0, 10, 0, 100).place(2.5) == pytest.approx(25)
    assert Axis(1, 100, 0, 100, log=True).place(10) == pytest.approx(50)
    assert Axis(0, 4250, 0, 1).ticks() == [0, 2000, 4000]


def test_numbers_read_well():
    read = ("0", "1.00", "43.2", "6\u202f510", "1.20e\u22127")
    assert tuple(significant(value) for value in (0, 0.99951, 43.21, 6512.3, 1.2e-7)) == read
    read = ("6.1\u00a0s", "60\u00a0s", "1\u00a0min 00\u00a0s", "3\u00a0min 45\u00a0s")
    assert tuple(duration(value) for value in (6.13, 59.9, 60, 225)) == read


def test_arrays_that_do_not_fit_are_refused():
    frames = np.zeros((3, 3, 8, 8), np.uint8)
    with pytest.raises(AssertionError, match="one entry per step"):
        Storyboard("odd", frames, frames, [0.1, 0.2], range(3))
    with pytest.raises(AssertionError, match="notes are for"):
        Report("t", "s", notes={"colophon": "?"})
    with pytest.raises(AssertionError, match="not finite"):
        LatentMap.from_latents(np.full((5, 4), np.nan), np.zeros((5, 2)))
