"""A fit that was killed with SIGKILL resumes and gives, on the CPU, the losses of one that was never killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

KILLER = '''
import os, signal
from lightning.pytorch import Callback

class Killer(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
'''
CHECKPOINTS = {"dirpath": "runs/${vars.run}", "save_last": True, "every_n_train_steps": 3}
CHANGES = {
    "model": {
        "init_args": {
            "objectives": {
                "rollout": {"class_path": "jepa.objectives.prediction.Regression", "init_args": {"source": "rollout"}},
                "sigreg": {"class_path": "jepa.objectives.sigreg.SIGReg", "init_args": {"directions": 16}},
            }
        }
    },
    "trainer": {
        "max_steps": 13,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "val_check_interval": 5,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": CHECKPOINTS},
            {"class_path": "killer.Killer"},
        ],
    },
}


@pytest.fixture
def fit(workshop, tmp_path, monkeypatch):
    """The arguments of a small fit with SIGReg, shifts, 7 batches an epoch and a checkpoint every third step."""
    dataset = workshop.data("two_rooms")
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump(CHANGES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "killer", raising=False)
    small = ("--vars.dim=16", "--model.world.predictor.init_args.width=32", "--model.world.predictor.init_args.depth=1")
    data = (f"--data.path={dataset}", "--data.batch_size=4", "--data.windows_per_epoch=28", "--data.val_windows=4")
    return ["fit", "-c", "pretrain/two_rooms", "-c", "changes.yaml", *small, *data, "--data.shift=2"]


def losses(run: str) -> dict[int, tuple[str, ...]]:
    with Path("runs", run, "logs", "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == len({row["step"] for row in rows}), "a step stands twice"
    return {int(row["step"]): (row["train/loss"], row["train/rollout"], row["train/sigreg"]) for row in rows}


@pytest.mark.parametrize(("accumulate", "kill_at", "resumed_at"), [(1, 11, 9), (2, 5, 3)])
def test_the_losses_of_a_killed_fit(accumulate, kill_at, resumed_at, fit, caplog, monkeypatch):
    from jepa.cli import main

    fit = [*fit, f"--trainer.accumulate_grad_batches={accumulate}"]
    command = [sys.executable, "-m", "jepa.cli", *fit, "--vars.run=killed"]
    path = os.pathsep.join([os.getcwd(), str(Path(__file__).parents[1])])
    environment = os.environ | {"KILL_AT": str(kill_at), "PYTHONPATH": path}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = losses("killed")
    assert resumed_at <= len(before) <= kill_at

    assert main([*fit, "--vars.run=killed", "--ckpt_path=last"]) == 0
    assert main([*fit, "--vars.run=whole"]) == 0
    whole = losses("whole")
    assert list(whole) == list(range(13)) and len({value for value in whole.values()}) == 13
    assert losses("killed") == whole
    assert {step: whole[step] for step in before} == before
