"""Batches for Lightning: a killed fit goes on with the very next batch; ranks share nothing; pixels stay uint8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from coded_episodes import write
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from jepa.data.module import EpisodeData
from jepa.data.order import EpochOrder
from jepa.errors import InputError
from jepa.schema import Sample


class Recorder(LightningModule):
    """Learns nothing and remembers which windows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch: Sample, number: int) -> torch.Tensor:
        assert batch.video.dtype == torch.uint8
        self.seen.append(batch.index.tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: Sample, number: int) -> None:
        assert batch.video.dtype == torch.uint8

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write(tmp_path / "a.h5", [20] * 10))


def data(path: str, **options: Any) -> EpisodeData:
    return EpisodeData(path, **{"frames": 4, "frame_skip": 2, "batch_size": 16, "splits": (0.6, 0.2, 0.2)} | options)


def fit(folder: Path, module: EpisodeData, ckpt: Path | None = None, **options: Any) -> list[Any]:
    recorder = Recorder()
    saved = [
        ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder, filename="end-{epoch}", every_n_epochs=1, save_top_k=-1),
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=saved if ckpt is None else [], enable_checkpointing=ckpt is None, **quiet, **options)
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt, weights_only=True)
    return recorder.seen


@pytest.mark.parametrize(
    ("options", "fitting"),
    [
        ({}, {"max_epochs": 2}),
        ({"windows_per_epoch": 70, "shift": 1}, {"max_steps": 9}),
        ({}, {"max_epochs": 2, "limit_train_batches": 3, "val_check_interval": 2}),
        ({"workers": 1}, {"max_epochs": 2, "limit_train_batches": 3}),
    ],
)
def test_resume_goes_on_with_the_next_batch(path: str, tmp_path: Path, options: Any, fitting: Any) -> None:
    whole = fit(tmp_path / "ckpt", data(path, **options), **fitting)
    assert len({str(batch) for batch in whole}) == len(whole)  # no batch comes twice
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"))
    for checkpoint in checkpoints[:: 3 if options.get("workers") else 1]:
        done = torch.load(checkpoint, weights_only=True)["global_step"]
        assert fit(tmp_path, data(path, **options), checkpoint, **fitting) == whole[done:], checkpoint.name


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    order = EpochOrder(100, seed=1)
    first = list(order)
    order.set_epoch(1)
    assert sorted(first) == list(range(100)) and list(order) != first
    order.set_epoch(0)
    assert list(order) == first != list(EpochOrder(100, seed=2))
    drawn = list(EpochOrder(100, 1000, seed=1))
    assert len(drawn) == 1000 and set(drawn) <= set(range(100)) and len(set(drawn)) > 90
    order.skip = 96
    assert list(order) == first[96:] and len(order) == 100


def test_ranks_share_no_place() -> None:
    whole = list(EpochOrder(101, seed=1))
    ranks = [list(EpochOrder(101, seed=1, rank=rank, ranks=3)) for rank in range(3)]
    assert [len(part) for part in ranks] == [33, 33, 33]
    assert [number for step in zip(*ranks) for number in step] == whole[:99]


def test_splits_hold_whole_episodes(path: str) -> None:
    module = data(path)
    loaders = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    owners = [{row for batch in loader for row in batch.index[:, 0].tolist()} for loader in loaders]
    assert [len(owner) for owner in owners] == [6, 2, 2] and set.union(*owners) == set(range(10))
    everything = torch.cat([batch.index for batch in module.predict_dataloader()])
    assert everything.tolist() == [[number, start] for number in range(10) for start in (0, 8)]


def test_fixed_windows_are_spread_evenly(path: str) -> None:
    (batch,) = data(path, val_windows=5).val_dataloader()
    assert len(batch.index) == 5
    windows = data(path).clips("val")
    seen = sorted(batch.index.tolist())
    assert seen[0] == windows[0].index.tolist() and seen[-1] == windows[len(windows) - 1].index.tolist()
    assert batch.index.tolist() != seen, "neighbouring windows share a batch: its spread says nothing"
    (again,) = data(path, val_windows=5).val_dataloader()
    assert torch.equal(again.index, batch.index)


def test_specs_and_size(path: str) -> None:
    module = data(path, size=4, goal="last", history=2)
    specs = module.specs
    assert (specs.observation.height, specs.observation.width) == (4, 4)
    assert specs.action.width == 4 and specs.evaluation.history == 2
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch.video.shape == (16, 4, 3, 4, 4) and batch.goal.video.shape == (16, 1, 3, 4, 4)
    assert batch.video.dtype == torch.uint8


def test_input_errors(path: str) -> None:
    with pytest.raises(InputError, match="84 training windows a device fill no batch of 1000"):
        data(path, batch_size=1000).train_dataloader()
    assert len(list(data(path, batch_size=1000, drop_last=False).train_dataloader())) == 1
    with pytest.raises(InputError, match="the test split of .* is empty"):
        data(path, splits=(0.9, 0.1, 0.0)).test_dataloader()
    with pytest.raises(InputError, match="nowhere.h5 is no file"):
        data("nowhere.h5").train_dataloader()
