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
from jepa.evaluation import ActionReport, Report
from jepa.evaluation.recorded import SCORES
from jepa.runtime import CONFIG_ROOTS
from jepa.tasks.features import read_meta
from probes.cache import FeatureCache

CONFIGS = CONFIG_ROOTS[-1]
RUNS = {"pretrain": "fit", "embed": "embed", "probe": "probe", "plan": "plan", "act": "act"}  # folder -> verb
PARTS = ("model", "data", "trainer", "planner")
CLIPS = ("anticipation", "dense")  # need further labels of clips: tests/probes/test_clip_configs.py runs them
SMALL_PLANNER = {"candidates": 8, "elites": 6, "iterations": 1, "first_iterations": 1}  # where a planner has them
SMALL_PLANNER |= {"simulations": 2, "first_simulations": 2, "sync_steps": 1}
SMALL_PLAN = ("--pairs=2", "--decisions=1", "--device=cpu")
SMALL_PROBE = ("--epochs=1", "--lr=[0.001]", "--accelerator=cpu", "--reach=2", "--labelled=1")


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
    given = variables(path)
    assert world.specs.action.block == given.get("frame_skip", 1)
    assert world.encoder.dim == 16 or "dim" not in given  # a pretrained backbone has its own
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


PUBLISHED = [path for path in found("pretrain") if "nodes" in variables(path)]  # on machines of 8 devices


@pytest.mark.parametrize("path", PUBLISHED, ids=named)
def test_published_batches_are_what_the_header_says(path):
    given = variables(path)
    devices = 8 * given["nodes"]
    batch = devices * given["batch"] * given["accumulate"]
    header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    steps = "300 epochs of 625 steps" if given["steps"] == 300 * 625 else f"{given['steps']:,} steps"
    for told in (f" {batch:,} ", f" {devices} devices", steps):
        assert told in header, f"{named(path)}: {told} is not in: {header}"
    assert batch == (2048 if path.stem.startswith("ijepa") else 3072)


@pytest.mark.parametrize("path", [path for path in PUBLISHED if path.stem.endswith("_cooldown")], ids=named)
def test_a_cooldown_is_its_recipe_from_its_end_on(path):
    """It begins at the pretraining's rate, which falls towards 1e-6, and changes nothing of the model."""
    given, before = variables(path), variables(path.with_name(path.name.replace("_cooldown", "")))
    assert given["start"] == f"runs/{before['run']}/last.ckpt"
    assert given["lr"] == before["lr"] and given["lr_start"] == 1 and given["warmup"] == 0
    assert given["lr"] * given["lr_final"] == pytest.approx(1e-6, rel=1e-4)
    assert (given["steps"], given["horizon"], given["shape"]) == (12000, 1.25, "linear")
    assert (given["frames"], given["grid"]) == (64, [32, 16, 16])
    if "by_distance" in given:  # V-JEPA 2.1
        assert (given["ramp"], given["by_distance"], before["by_distance"]) == (None, False, True)
    other = {"run", "nodes", "batch", "start", "steps", "frames", "grid", "ramp", "by_distance"}
    other |= {name for name in given if name.startswith("lr_")} | {"shape", "warmup", "horizon"}
    assert {k: v for k, v in given.items() if k not in other} == {k: v for k, v in before.items() if k not in other}


MASKED = [path for path in found("pretrain") if "model: ../model/masked_" in path.read_text()]


@pytest.mark.parametrize("path", MASKED, ids=named)
def test_mask_tokens_begin_as_published(path, jepa):
    """I-JEPA's as truncated normal, V-JEPA's as zeros."""
    world = yaml.safe_load(jepa.print("fit", "-c", path, "--print_config"))["model"]["init_args"]["world"]
    std = world["init_args"]["predictor"]["init_args"]["token_std"]
    assert std == (0.02 if path.stem.startswith("ijepa") else 0.0)


OWN = {variables(path)["run"] for path in found("pretrain")}  # the others embed what was published: tests/tasks


@pytest.mark.parametrize("path", [path for path in found("embed") if variables(path)["run"] in OWN], ids=named)
def test_embed(path, workshop):
    run, baseline = variables(path)["run"], "pixels" if "pixels" in path.stem else "untrained"
    trained, other = (FeatureCache(workshop.features(run, name)) for name in ("", baseline))
    assert trained.meta["data"] == other.meta["data"] and trained.meta["weights"] != other.meta["weights"]
    for cache in (trained, other):
        assert np.isfinite(cache.features[:]).all()


@pytest.mark.parametrize("path", [path for path in found("probe") if path.stem not in CLIPS], ids=named)
def test_probe(path, jepa, workshop, tmp_path):
    run, baselines = variables(path)["run"], yaml.safe_load(path.read_text())["baselines"]
    caches = [workshop.features(run, name) for name in ("", *baselines)]
    weights = {read_meta(cache)["weights"] for cache in caches}
    assert jepa("probe", "-c", path, f"--out={tmp_path}", *SMALL_PROBE).code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    used = (report, *report["baselines"].values())
    assert {part["seeds"][0]["features"]["weights"] for part in used} == weights and len(weights) == len(caches)
    assert all(map(math.isfinite, numbers(report))) and len(numbers(report)) > 10
    assert (tmp_path / "probe.safetensors").stat().st_size


def small_planner(jepa, config) -> list[str]:
    planner = yaml.safe_load(jepa.print("plan", "-c", config, "--print_config"))["planner"]["init_args"]
    return [f"--planner.{setting}={value}" for setting, value in SMALL_PLANNER.items() if setting in planner]


@pytest.mark.parametrize("path", found("plan"), ids=named)
def test_plan(path, jepa, workshop, tmp_path):
    if path.stem.endswith("nevergrad"):
        pytest.importorskip("nevergrad", exc_type=ImportError, reason="pip install 'jepa-worlds[compare]'")
    workshop.checkpoint(variables(path)["run"])
    small = small_planner(jepa, path)
    answer = jepa("plan", "-c", path, f"--out={tmp_path}", *small, *SMALL_PLAN)
    assert answer.code == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert all(map(math.isfinite, numbers(told)))
    if told["protocol"]["name"].startswith("recorded/"):
        report = ActionReport.load(tmp_path / "report.json")
        assert report.pairs == 2 and set(report.floors) == {"mean_action", "random", "repeat_last"}
        assert set(SCORES) <= set(report.errors) and "| raw error of dimension | 0 | 1 | " in answer.out
        return
    report = Report.load(tmp_path / "report.json")
    assert len(report.steps) == 2 and set(report.floors) == {"random", "idle"}
    assert (tmp_path / "trajectories.npz").is_file()


@pytest.mark.parametrize("path", found("act"), ids=named)
def test_act(path, jepa, workshop, tmp_path):
    """On the pairs of the planner's config of the same name, and beside it."""
    run = variables(path)["run"]
    workshop.features(run)
    fit = (f"--vars.run={run}", f"--out={tmp_path}/probe", "--baselines=null", *SMALL_PROBE)
    assert jepa("probe", "-c", "probe/goal_policy", *fit).code == 0
    few = ("--pairs=2", "--num=2", "--decisions=1", "--device=cpu")
    small = small_planner(jepa, f"plan/{path.stem}")
    assert jepa("plan", "-c", f"plan/{path.stem}", f"--out={tmp_path}/plan", *small, *few).code == 0
    against = f"--against={tmp_path}/plan/report.json"
    assert jepa("act", "-c", path, f"--probe={tmp_path}/probe", f"--out={tmp_path}/act", against, *few).code == 0
    report = Report.load(tmp_path / "act/report.json")
    assert report.pairs_digest == Report.load(tmp_path / "plan/report.json").pairs_digest
    assert report.comparison.pairs == 2 and set(report.floors) == {"random", "idle"}
