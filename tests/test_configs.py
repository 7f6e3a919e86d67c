"""Every run config, shrunk, through the command line; every part config is used by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jepa.checkpoints import load
from jepa.evaluation import Report
from jepa.runtime import CONFIG_ROOTS
from probes.cache import FeatureCache

CONFIGS = CONFIG_ROOTS[-1]
RUNS = {"pretrain": "fit", "embed": "embed", "probe": "probe", "plan": "plan"}  # folder -> verb
PARTS = ("model", "data", "trainer", "planner")
SMALL_PLANNER = {"candidates": 8, "elites": 6, "iterations": 1, "first_iterations": 1}  # where a planner has them
SMALL_PLAN = ("--pairs=2", "--decisions=1", "--device=cpu")
SMALL_PROBE = ("--epochs=1", "--lr=[0.001]", "--accelerator=cpu", "--reach=2")


def found(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in CONFIGS.glob(f"{folder}/*.yaml"))


def named(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def variables(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["vars"]


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for item in tree for number in numbers(item)]
    return [tree] if isinstance(tree, (int, float)) else []


def test_every_config_is_a_part_or_a_run():
    assert {path.parent.name for path in found("*")} <= {*RUNS, *PARTS}
    assert all(found(folder) for folder in RUNS)


@pytest.mark.parametrize("path", found(*PARTS), ids=named)
def test_every_part_is_used_by_a_run(path):
    using = [run for run in found(*RUNS) if f"../{path.relative_to(CONFIGS)}\n" in f"{run.read_text()}\n"]
    assert using, f"no run is composed of {named(path)}"


@pytest.mark.parametrize("path", found(*RUNS), ids=named)
def test_the_printed_configuration_is_a_configuration(path, jepa, workshop, tmp_path):
    verb = RUNS[path.parent.name]
    printed = jepa.print(verb, "-c", path, "--print_config")
    assert "${" not in printed, "an interpolation was left open"
    copy = tmp_path / "printed.yaml"
    copy.write_text(printed)
    assert jepa.print(verb, "-c", copy, "--print_config") == printed


@pytest.mark.parametrize("path", found("pretrain"), ids=named)
def test_pretrain(path, workshop):
    run = variables(path)["run"]
    checkpoint = workshop.checkpoint(run)
    world = load(str(checkpoint))
    assert world.specs.action.block == variables(path).get("frame_skip", 1) and world.encoder.dim == 16
    assert all(value.isfinite().all() for value in world.state_dict().values())
    assert list((workshop.folder / "runs" / run).rglob("metrics.csv"))
    assert list((workshop.folder / "runs" / run).rglob("config.yaml"))


@pytest.mark.parametrize("path", found("pretrain"), ids=named)
def test_the_last_step_is_kept(path, jepa):
    """Lightning writes nothing at the end of a training when an earlier checkpoint was written."""
    trainer = yaml.safe_load(jepa.print("fit", "-c", path, "--print_config"))["trainer"]
    options = [callback["init_args"] for callback in trainer["callbacks"]]
    every = [given["every_n_train_steps"] for given in options if "every_n_train_steps" in given]
    assert every and all(trainer["max_steps"] % steps == 0 for steps in every)


@pytest.mark.parametrize("path", found("embed"), ids=named)
def test_embed(path, workshop):
    run = variables(path)["run"]
    trained, untrained = (FeatureCache(workshop.features(run, untrained)) for untrained in (False, True))
    assert trained.meta["data"] == untrained.meta["data"] and trained.meta["weights"] != untrained.meta["weights"]
    for cache in (trained, untrained):
        assert np.isfinite(np.load(cache.path / "features.npy", allow_pickle=False)).all()


@pytest.mark.parametrize("path", found("probe"), ids=named)
def test_probe(path, jepa, workshop, tmp_path):
    run = variables(path)["run"]
    workshop.features(run), workshop.features(run, untrained=True)
    assert jepa("probe", "-c", path, f"--out={tmp_path}", *SMALL_PROBE).code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["baseline"]["features"]["weights"] != report["features"]["weights"]
    assert all(map(math.isfinite, numbers(report))) and len(numbers(report)) > 10
    assert (tmp_path / "probe.safetensors").stat().st_size


@pytest.mark.parametrize("path", found("plan"), ids=named)
def test_plan(path, jepa, workshop, tmp_path):
    workshop.checkpoint(variables(path)["run"])
    planner = yaml.safe_load(jepa.print("plan", "-c", path, "--print_config"))["planner"]["init_args"]
    small = [f"--planner.{setting}={value}" for setting, value in SMALL_PLANNER.items() if setting in planner]
    assert jepa("plan", "-c", path, f"--out={tmp_path}", *small, *SMALL_PLAN).code == 0
    report = Report.load(tmp_path / "report.json")
    assert len(report.steps) == 2 and set(report.floors) == {"random", "idle"}
    told = json.loads((tmp_path / "report.json").read_text())
    assert all(map(math.isfinite, numbers(told)))
    assert (tmp_path / "trajectories.npz").is_file()
