"""The demo, shrunk: every stage runs and its page carries what the stages found."""

from __future__ import annotations

import json

from jepa.cli import main


def test_the_demo_writes_its_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--episodes=24", "--max_steps=4", "--pairs=2"]) == 0
    out = tmp_path / "runs/demo"
    assert "planning: " in capsys.readouterr().out
    page = (out / "report.html").read_text()
    report = json.loads((out / "report.json").read_text())["report"]
    assert [stage["name"] for stage in report["stages"] if stage["training"]] == ["pretrain the world model"]
    assert report["settings"]["optimiser steps"] == 4 and report["settings"]["episodes collected"] == 24
    probes = {row["name"]: row for row in report["probes"]}
    assert len(probes) == 5 and all(row["untrained"] and row["pixels"] for row in probes.values())
    assert [row["policy"] for row in report["planning"] if row["floor"]] == ["random", "idle"]
    assert json.loads((out / "world/world.json").read_text())["rate"] == 0.05 and "data:image/svg+xml" in page
    found = json.loads((out / "plan/report.json").read_text())
    assert report["planning"][0]["success"]["value"] == found["rate"]
    for command in report["commands"]:
        assert command.split(" ", 2)[2].split()[0] in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_demo_refuses_a_folder_that_its_configs_cannot_reach(tmp_path, capsys):
    assert main(["demo", f"--out={tmp_path}"]) == 2
    assert "runs/NAME" in capsys.readouterr().err
