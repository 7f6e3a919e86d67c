"""Two processes (gloo, on the CPU) train a masked model to the losses and weights of one with the joint batch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from jepa.checkpoints import load

CONFIGS = Path(__file__).parents[1] / "configs"
CHECKPOINTS = {"dirpath": "runs/${vars.run}", "every_n_train_steps": 2, "save_top_k": -1, "save_last": True}
CHANGES = {
    "trainer": {
        "max_steps": 4,
        "accelerator": "cpu",
        "precision": "32-true",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": CHECKPOINTS},
        ],
    },
}
MIX = "vjepa2_1_vitl16"  # sharded, with images among the videos
SMALL = {"warmup": 1, "size": 64, "patch": 8, "frames": 4, "grid": [2, 8, 8], "dim": 16, "depth": 2, "heads": 2}
SMALL |= {"width": 16, "predictor_depth": 1, "predictor_heads": 2, "steps": 4, "check": 2, "nodes": 1}


@pytest.fixture
def folder(workshop, tmp_path, monkeypatch):
    workshop.videos()
    (tmp_path / "data").symlink_to(workshop.folder / "data")
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump(CHANGES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(config: str, run: str, batch: int, processes: int) -> list[str]:
    small = SMALL | ({"depth": 4, "levels": [0, 1, 2, 3]} if config == MIX else {})
    known = yaml.safe_load((CONFIGS / "pretrain" / f"{config}.yaml").read_text())["vars"]
    flags = [f"--vars.{name}={value}" for name, value in small.items() if name in known]
    data = [f"--data.batch_size={batch}", "--data.workers=0", "--data.clips_per_epoch=16", "--data.time_limit=null"]
    start = ["fit", "-c", f"pretrain/{config}", "-c", "changes.yaml", f"--vars.run={run}"]
    return [*start, *flags, *data, f"--trainer.devices={processes}"]


def alone(config: str, run: str, *more: str) -> None:
    from jepa.cli import main

    assert main([*command(config, run, 4, 1), "--trainer.strategy=auto", *more]) == 0


def together(config: str, run: str, *more: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "jepa.cli"]
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    line = [*launch, *command(config, run, 2, 2), *more]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: str) -> list[float]:
    with Path("runs", run, "logs", "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def furthest(a: str, b: str) -> float:
    one, other = (load(f"runs/{run}/last.ckpt").state_dict() for run in (a, b))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("config", ["vjepa2_vitl16", MIX], ids=["DDP", "FSDP2 of lengths"])
def test_two_processes_are_one_with_the_joint_batch(config, folder):
    alone(config, "one")
    together(config, "two")
    one, two = losses("one"), losses("two")
    assert len(one) == 4 and len(set(one)) == 4
    assert two == pytest.approx(one, abs=1e-6)
    assert furthest("one", "two") < 2e-6


def test_regularised_latents_of_several_lengths(folder):
    """Some batches of a process have no clip of a length, and some steps none at all: what stands in for them is no
    sample of the joint statistic, and the same directions are drawn."""
    films = "{path: data/moving_digits/train, labels: []"
    sources = f"--data.sources=[{films}, frames: 4}}, {films}, frames: 2, weight: 0.25}}]"
    flags = [sources, "--data.splits=[1.0,0.0,0.0]"]
    alone("masked_sigreg", "one", *flags)
    together("masked_sigreg", "two", *flags, "--trainer.strategy=ddp")
    assert losses("two") == pytest.approx(losses("one"), abs=2e-5)
    assert furthest("one", "two") < 1e-5


def test_a_training_goes_on_sharded_or_not(folder):
    """From the second step on with the other number of processes."""
    config, half = "vjepa2_vitg16", "epoch=0-step=2.ckpt"
    alone(config, "one")
    together(config, "two")
    assert losses("two") == pytest.approx(losses("one"), abs=1e-6)
    for first, second, run in (("one", together, "spread"), ("two", alone, "gathered")):
        moments = torch.load(f"runs/{first}/{half}", weights_only=True)["optimizer_states"][0]
        numbers = [number for group in moments["param_groups"] for number in group["params"]]
        assert numbers == list(range(len(moments["state"])))
        second(config, run, f"--ckpt_path=runs/{first}/{half}")
        assert losses(run) == pytest.approx(losses("one")[2:], abs=1e-6)
        assert furthest(run, "one") < 2e-6
