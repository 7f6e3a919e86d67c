"""A masked pretraining that was killed with SIGKILL resumes and gives the losses of one that was never killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jepa.checkpoints import load

KILLER = '''
import os, signal
from lightning.pytorch import Callback

class Killer(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
'''
CHECKPOINTS = {"dirpath": "runs/${vars.run}", "filename": "{step}", "every_n_train_steps": 2}
CHECKPOINTS |= {"save_last": True, "save_top_k": -1}
CHANGES = {
    "trainer": {
        "max_steps": 7,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "val_check_interval": 4,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": CHECKPOINTS},
            {"class_path": "killer.Killer"},
        ],
    },
}
SMALL = {"size": 64, "patch": 8, "frames": 4, "grid": [2, 8, 8], "dim": 16, "depth": 4, "levels": [0, 1, 2, 3]}
SMALL |= {"heads": 2, "width": 16, "predictor_depth": 1, "predictor_heads": 2, "warmup": 2}


@pytest.fixture
def fit(workshop, tmp_path, monkeypatch):
    """The arguments of a small fit on clips of two lengths: 5 batches an epoch, a checkpoint every second step."""
    workshop.videos()
    (tmp_path / "data").symlink_to(workshop.folder / "data")
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump(CHANGES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "killer", raising=False)
    small = [f"--vars.{name}={value}" for name, value in SMALL.items()]
    data = ["--data.batch_size=4", "--data.workers=1", "--data.clips_per_epoch=20", "--data.val_clips=2"]
    return ["fit", "-c", "pretrain/vjepa2_1_small", "-c", "changes.yaml", *small, *data]


def losses(run: str) -> dict[int, tuple[str, ...]]:
    with Path("runs", run, "logs", "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {int(row["step"]): (row["train/loss"], row["train/forecast"], row["train/context"]) for row in rows}


@pytest.mark.parametrize(("accumulate", "kill_at", "resumed_at"), [(1, 5, 4), (2, 3, 2)])
def test_the_losses_of_a_killed_fit(accumulate, kill_at, resumed_at, fit):
    from jepa.cli import main

    fit = [*fit, f"--trainer.accumulate_grad_batches={accumulate}"]
    path = os.pathsep.join([os.getcwd(), str(Path(__file__).parents[1])])
    environment = os.environ | {"KILL_AT": str(kill_at), "PYTHONPATH": path}
    command = [sys.executable, "-m", "jepa.cli", *fit, "--vars.run=killed"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = losses("killed")
    assert resumed_at <= len(before) <= kill_at
    half = Path("runs/killed/.last.1.part.ckpt")  # what a kill in the middle of a checkpoint leaves
    half.write_bytes(Path("runs/killed/last.ckpt").read_bytes()[:1000])

    assert main([*fit, "--vars.run=killed", "--ckpt_path=last"]) == 0
    assert main([*fit, "--vars.run=whole"]) == 0
    whole = losses("whole")
    assert list(whole) == list(range(7)) and len(set(whole.values())) == 7
    assert losses("killed") == whole
    assert {step: whole[step] for step in before} == before
    assert not half.exists()


def furthest(one: str, other: str) -> float:
    """Largest difference of the weights of two checkpoints."""
    mine, theirs = (load(f"runs/{name}.ckpt").state_dict() for name in (one, other))
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def test_half_the_devices_and_twice_the_accumulation_go_on_at_the_same_place(fit):
    """Here one device with batches of half the size; the checkpoint lies in the middle of an epoch."""
    from jepa.cli import main

    fit = [*fit, "--data.clips_per_epoch=64"]
    assert main([*fit, "--vars.run=whole", "--data.batch_size=8"]) == 0
    begun = "--ckpt_path=runs/whole/step=4.ckpt"
    assert main([*fit, "--vars.run=halved", "--trainer.accumulate_grad_batches=2", begun]) == 0
    assert furthest("whole/last", "halved/last") < 2e-6 < 1e-4 < furthest("whole/last", "whole/step=4")
    assert main([*fit, "--vars.run=within", "--data.batch_size=5", begun]) == 2  # 32 clips are no batches of 5


def test_accumulated_gradients_are_those_of_the_large_batch(fit):
    """Also where an epoch, of 20 clips here, is no multiple of it."""
    from jepa.cli import main

    assert main([*fit, "--vars.run=large", "--data.batch_size=8"]) == 0
    assert main([*fit, "--vars.run=small", "--trainer.accumulate_grad_batches=2"]) == 0
    assert main([*fit, "--vars.run=other", "--data.batch_size=8", "--data.seed=1"]) == 0
    assert furthest("large/last", "small/last") < 2e-6 < 1e-3 < furthest("large/last", "other/last")
