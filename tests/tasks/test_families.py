"""The published families learn, in shrunk form, and can be planned with: one config each."""

from __future__ import annotations

import csv
import math

import pytest

from jepa.checkpoints import load
from jepa.evaluation import Report

SMALL = (
    "--data.batch_size=16",
    "--data.windows_per_epoch=640",
    "--data.val_windows=16",
    "--trainer.max_steps=60",
    "--trainer.val_check_interval=20",
    "--trainer.log_every_n_steps=5",
    "--trainer.accelerator=cpu",
)
GRU = ("--vars.dim=32", "--vars.convolutions=[8,8,8]")
WINDOW = ("--vars.hidden=64", "--vars.head=8", "--vars.depth=1", "--vars.heads=4")
PATCHES = ("--vars.width=32", "--vars.depth=1", "--vars.heads=4")
FAMILIES = {  # config -> its dataset, what shrinks it, and the config that plans with it
    "pldm_two_rooms": ("two_rooms", (*GRU, "--vars.frames=5", "--vars.rollout=4"), "two_rooms"),
    "eb_jepa_two_rooms": ("two_rooms_random", (*GRU, "--vars.frame_skip=1"), "two_rooms"),
    "dino_wm_pusht": ("pusht", WINDOW, "dino_wm_pusht"),
    "jepa_wm_pusht": ("pusht", PATCHES, "pusht"),
}


def curve(folder, name):
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns_and_plans(name, workshop, jepa, tmp_path):
    data, small, planned = FAMILIES[name]
    workshop.data(data)
    run = workshop.folder / "runs" / f"{name}_longer"
    fitted = jepa("fit", "-c", f"pretrain/{name}", f"--vars.run={run.name}", *small, *SMALL)
    assert fitted.code == 0, fitted.err
    losses = curve(run, "train/loss")
    assert sum(losses[-3:]) / 3 < 0.9 * sum(losses[:2]) / 2 and all(map(math.isfinite, losses)), losses
    assert curve(run, "collapse/std")[-1] > 0.05 and curve(run, "collapse/rankme")[-1] > 2
    assert all(value.isfinite().all() for value in load(str(run / "last.ckpt")).state_dict().values())
    few = ("--planner.candidates=8", "--planner.elites=6", "--planner.iterations=1", "--pairs=2", "--decisions=1")
    told = jepa("plan", "-c", f"plan/{planned}", f"--vars.run={run.name}", f"--out={tmp_path}", *few, "--device=cpu")
    assert told.code == 0, told.err
    assert len(Report.load(tmp_path / "report.json").steps) == 2
