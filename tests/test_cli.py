"""The front door: verbs, configs by name and path, flags over files, checkpoints by 'last'."""

from __future__ import annotations

import csv
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from jepa import __version__
from jepa.checkpoints.load import read
from jepa.tasks.base import checkpoint_path

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = ("-c", "pretrain/two_rooms", "--vars.dim=16", "--data.val_windows=4", "--trainer.accelerator=cpu")
SMALL = (
    *(*RUN, "--model.world.predictor.init_args.width=32", "--model.world.predictor.init_args.depth=1"),
    *("--data.batch_size=4", "--data.windows_per_epoch=16", "--trainer.val_check_interval=2"),
)


def test_help_and_version(jepa):
    assert jepa().out == jepa("--help").out and "usage: jepa VERB" in jepa("--help").out
    assert jepa("--version").out.strip() == __version__
    assert "--planner.candidates" not in jepa.print("plan", "--help") and "--pairs" in jepa.print("plan", "--help")
    assert "--trainer.max_steps" in jepa.print("fit", "--help")


def test_flags_override_files_and_variables_reach_every_file(jepa):
    flags = ("--vars.run=mine", "--vars.data=other", "--vars.dim=24", "--trainer.max_steps=7")
    tree = yaml.safe_load(jepa.print("fit", "-c", "pretrain/two_rooms", *flags, "--print_config"))
    world = tree["model"]["init_args"]["world"]["init_args"]
    assert tree["data"]["init_args"]["path"] == "data/other.h5"
    assert world["encoder"]["init_args"]["dim"] == world["predictor"]["init_args"]["dim"] == 24
    assert tree["trainer"]["max_steps"] == 7 and tree["trainer"]["default_root_dir"] == "runs/mine"
    assert {callback["init_args"].get("dirpath") for callback in tree["trainer"]["callbacks"]} == {"runs/mine", None}


def test_one_weight_is_patched_and_a_later_file_wins(jepa, tmp_path):
    (tmp_path / "later.yaml").write_text("trainer: {max_steps: 5, default_root_dir: 'runs/later/${vars.run}'}\n")
    flag = "--model.objectives.variance.weight=9.0"
    files = ("-c", "pretrain/two_rooms", "-c", tmp_path / "later.yaml")
    tree = yaml.safe_load(jepa.print("fit", *files, flag, "--print_config"))
    plain = yaml.safe_load(jepa.print("fit", "-c", "pretrain/two_rooms", "--print_config"))
    mine, theirs = (given["model"]["init_args"]["objectives"] for given in (tree, plain))
    assert mine["variance"]["init_args"].pop("weight") == 9.0 != theirs["variance"]["init_args"].pop("weight")
    assert mine == theirs
    assert tree["trainer"]["max_steps"] == 5 and tree["trainer"]["default_root_dir"] == "runs/later/two_rooms"


@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_a_config_is_named_or_a_path(verb, jepa):
    name = {"fit": "pretrain/two_rooms", "plan": "plan/two_rooms"}[verb]
    ways = (("-c", name), ("-c", CONFIGS / f"{name}.yaml"), (f"--config={name}",), (f"-c={name}.yaml",))
    assert len({jepa.print(verb, *way, "--print_config") for way in ways}) == 1


def test_last_starts_at_the_beginning_and_then_goes_on(jepa, workshop, caplog):
    workshop.data("two_rooms")
    caplog.set_level(logging.INFO)
    fit = ("fit", *SMALL, "--vars.run=twice", "--ckpt_path=last", "--trainer.log_every_n_steps=1")
    assert jepa(*fit, "--trainer.max_steps=2").code == 0 and "starting from the beginning" in caplog.text
    assert read("runs/twice/last.ckpt")["global_step"] == 2 and "resuming from" not in caplog.text
    assert jepa(*fit, "--trainer.max_steps=4").code == 0 and "resuming from" in caplog.text
    assert read("runs/twice/last.ckpt")["global_step"] == 4
    with Path("runs/twice/logs/metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps[:2] == [0, 1] and len(steps) == 4 and steps == sorted(steps)


def test_a_job_that_slurm_started_again_keeps_its_curves(jepa, workshop):
    """Lightning goes on with the checkpoint that it wrote when it was told to leave its node, though none is named."""
    workshop.data("two_rooms")
    fit = ("fit", *SMALL, "--vars.run=requeued", "--trainer.log_every_n_steps=1")
    assert jepa(*fit, "--trainer.max_steps=2").code == 0
    shutil.copy("runs/requeued/last.ckpt", "runs/requeued/hpc_ckpt_1.ckpt")
    assert jepa(*fit, "--trainer.max_steps=4").code == 0
    with Path("runs/requeued/logs/metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert steps[:2] == ["0", "1"] and len(steps) == 4


def test_half_a_checkpoint_is_not_the_last_one(jepa, workshop, tmp_path):
    """A process that is killed while it writes leaves the name that it wrote to."""
    (tmp_path / "last.ckpt").write_bytes(b"whole")
    half = tmp_path / ".step=9.123.part.ckpt"
    half.write_bytes(b"half")
    os.utime(tmp_path / "last.ckpt", (1, 1))
    callback = SimpleNamespace(dirpath=str(tmp_path))
    assert checkpoint_path("last", [callback]) == str(tmp_path / "last.ckpt") and not half.exists()


def test_a_run_that_starts_anew_forgets_the_old_curves(jepa, workshop):
    workshop.data("two_rooms")
    fit = ("fit", *SMALL, "--vars.run=anew", "--trainer.log_every_n_steps=1")
    for steps in (3, 2):
        assert jepa(*fit, f"--trainer.max_steps={steps}").code == 0
    with Path("runs/anew/logs/metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1"]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_of_the_last_checkpoint(verb, jepa, workshop):
    checkpoint = workshop.checkpoint("two_rooms")
    before = checkpoint.read_bytes()
    answer = jepa(verb, *SMALL, "--ckpt_path=last")
    assert answer.code == 0, answer.err
    assert checkpoint.read_bytes() == before
    if verb != "predict":
        assert {"validate": "val/loss", "test": "test/loss"}[verb] in answer.out


def test_a_checkpoint_brings_the_statistics_that_it_was_trained_with(jepa, workshop, tmp_path):
    """A dataset that has grown since has other means; the weights do not know them."""
    checkpoint, grown = workshop.checkpoint("two_rooms"), tmp_path / "grown.h5"
    jepa("collect", "two_rooms", f"--out={grown}", "--script=smooth", "--episodes=12", "--steps=24", "--seed=99")
    fit = ("fit", *SMALL, "--vars.run=grown", f"--data.path={grown}", "--trainer.max_steps=5")
    assert jepa(*fit, f"--ckpt_path={checkpoint}").code == 0
    mine, theirs = (read(path)["jepa"]["specs"]["action"] for path in ("runs/grown/last.ckpt", checkpoint))
    assert mine == theirs


def test_inspect(jepa, workshop, tmp_path):
    dataset = jepa("inspect", workshop.data("two_rooms")).out
    for fact in ("12", "300", "3 x 64 x 64", "2 wide, in blocks of 1", "jepa/TwoRooms-v0", "two_rooms/v1", "x, y"):
        assert fact in dataset
    checkpoint = jepa("inspect", workshop.checkpoint("two_rooms")).out
    for fact in ("optimiser steps", "ConvNet", "ActionPredictor", "EMA", "16 wide", "in blocks of 3"):
        assert fact in checkpoint
    features = jepa("inspect", workshop.features("two_rooms")).out
    for fact in ("feature cache", "episodes in train", "float16", "in blocks of 3"):
        assert fact in features
    assert str(tmp_path) in jepa("inspect", tmp_path).complaint()


def test_predict_gives_the_latents_of_every_window(workshop):
    """What the trainer's predict returns: one latent a frame."""
    from jepa.checkpoints import load
    from jepa.data.module import EpisodeData

    world = load(str(workshop.checkpoint("two_rooms")))
    data = EpisodeData(str(workshop.data("two_rooms")), frames=9, frame_skip=3, batch_size=4)
    latents = torch.cat([world.encode(batch) for batch in data.predict_dataloader()])
    assert latents.shape == (12, 9, 1, 16) and latents.isfinite().all()
