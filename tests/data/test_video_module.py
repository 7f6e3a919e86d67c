"""Mixtures of videos for Lightning: full batches, whatever breaks; a killed fit goes on; ranks share nothing."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filmed import film, numbers
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from jepa.data.anticipation import Anticipation
from jepa.data.clips import split
from jepa.data.video_clips import VideoSource
from jepa.data.video_module import VideoData
from jepa.errors import InputError
from jepa.schema import Sample


class Recorder(LightningModule):
    """Learns nothing and remembers the keys and the pixels that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.validated = torch.nn.Linear(1, 1), [], []

    def training_step(self, batch: list[Sample], number: int) -> torch.Tensor:
        self.seen.append([(sample.key.tolist(), sample.video.long().sum().item()) for sample in batch])
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: list[Sample], number: int) -> None:
        self.validated += [row for sample in batch for row in sample.index.tolist()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of 20 to 31 frames."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(12):
        film(folder / f"{number:02}.mp4", 20 + number)
    return folder


@pytest.fixture
def own(films: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(films, tmp_path / "own"))


def data(*paths: Path, frames: tuple[int, ...] = (4,), weights: tuple[float, ...] = (), **options: Any) -> VideoData:
    """One source per path, each with its frames and weight."""
    frames, weights = frames * (len(paths) // len(frames)), weights or (1.0,) * len(paths)
    sources = [VideoSource(str(path), t, weight=w, decoder="pyav") for path, t, w in zip(paths, frames, weights)]
    defaults = {"size": 16, "batch_size": 4, "workers": 0, "time_limit": None, "splits": (0.5, 0.25, 0.25)}
    return VideoData(sources, **defaults | options)


def trained(module: VideoData) -> list[Sample]:
    """One epoch of the training."""
    return [sample for batch in module.train_dataloader() for sample in batch]


def fit(folder: Path, module: VideoData, ckpt: Path | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    saved = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=saved if ckpt is None else [], enable_checkpointing=ckpt is None, **quiet, **options)
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt, weights_only=True)
    return recorder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fit_goes_on_with_the_next_batch(films, tmp_path, workers):
    def go_on(ckpt: Path | None = None) -> list[Any]:
        options = {"clips_per_epoch": 20, "workers": workers, "splits": (1.0, 0.0, 0.0)}
        return fit(tmp_path, data(films, films, frames=(4, 2), **options), ckpt, max_epochs=2).seen

    whole = go_on()
    assert len(whole) == 10
    for step in (3, 5, 7):
        assert go_on(tmp_path / f"step={step}.ckpt") == whole[step:]


def test_batches_do_not_depend_on_workers(films):
    alone, spread = (trained(data(films, clips_per_epoch=24, workers=workers)) for workers in (0, 2))
    for one, other in zip(alone, spread, strict=True):
        assert torch.equal(one.video, other.video) and torch.equal(one.key, other.key)


def test_the_parts_share_no_video_and_one_epoch_is_every_video_once(films):
    held = data(films, batch_size=3)
    rows = [held.clips(part).rows.tolist() for part in ("train", "val", "test")]
    assert sorted(sum(rows, [])) == held.clips("all").rows.tolist() == list(range(12))
    assert [len(part) for part in rows] == [6, 3, 3]
    epoch = [row for (batch,) in held.train_dataloader() for row in batch.index[:, 0].tolist()]
    assert sorted(epoch) == rows[0]


def test_a_mixture_is_drawn_by_weight_and_grouped_by_length(films):
    held = data(films, films, frames=(6, 2), weights=(1.0, 3.0), clips_per_epoch=400, batch_size=40)
    batches = list(held.train_dataloader())
    assert len(batches) == 10
    assert all([sample.video.shape[1] for sample in batch] == [2, 6] for batch in batches)
    assert all(sum(len(sample.key) for sample in batch) == 40 for batch in batches)
    assert 250 < sum(len(batch[0].key) for batch in batches) < 350


def test_own_datasets_for_validation_leave_all_videos_to_training(films, own):
    held = data(films, val=[VideoSource(str(own), 8, decoder="pyav")], splits=(0.5, 0.25, 0.25))
    assert len(held.clips("train")) == 9 and len(held.clips("val")) == 12  # the test still has its quarter
    (batch,) = next(iter(held.val_dataloader()))
    assert batch.video.shape[:2] == (4, 8)


def test_a_file_that_breaks_in_training_is_replaced_and_named_once(films, own, caplog):
    held = data(own, clips_per_epoch=80, splits=(1.0, 0.0, 0.0), workers=2)
    loader = held.train_dataloader()
    for name in ("03.mp4", "07.mp4"):
        (own / name).write_bytes(b"broken")
    intact = trained(data(films, clips_per_epoch=80, splits=(1.0, 0.0, 0.0)))
    with caplog.at_level(logging.WARNING):
        batches = [sample for batch in loader for sample in batch]
    assert [len(batch.key) for batch in batches] == [4] * 20
    replaced = 0
    for before, after in zip(intact, batches, strict=True):
        assert torch.equal(before.key, after.key)
        for place, row in enumerate(before.index[:, 0].tolist()):
            if row in (3, 7):
                replaced += 1
                assert after.index[place, 0] not in (3, 7)
            else:
                assert torch.equal(before.video[place], after.video[place])
    assert replaced > 4
    assert sorted(held.failed) == [str(own / "03.mp4"), str(own / "07.mp4")]
    assert caplog.text.count("03.mp4 (number") == caplog.text.count("07.mp4 (number") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_in_evaluation_is_left_out_and_named(own, caplog, workers):
    held = data(own, splits=(1.0, 0.0, 0.0), workers=workers)
    loader = held.predict_dataloader()
    for name in ("00.mp4", "04.mp4", "05.mp4", "06.mp4", "07.mp4"):  # the second batch has none left
        (own / name).write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        rows = [row for (batch,) in loader for row in batch.index[:, 0].tolist()]
    assert rows == [1, 2, 3, 8, 9, 10, 11]
    assert "5 of 12 clips could not be read and are left out" in caplog.text
    assert sorted(Path(name).name for name in held.failed) == ["00.mp4", "04.mp4", "05.mp4", "06.mp4", "07.mp4"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_broke_as_a_whole_is_an_error(own, workers):
    held = data(own, splits=(0.5, 0.5, 0.0), workers=workers)
    loaders = held.train_dataloader(), held.val_dataloader()
    for path in own.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=f"^{own}: none of 6 videos can be read.*$"):
        list(loaders[0])
    with pytest.raises(InputError, match="^none of 6 clips can be read"):
        list(loaders[1])


def test_validation_sees_every_clip_once(films, tmp_path):
    seen = fit(tmp_path, data(films), max_steps=1, val_check_interval=1, num_sanity_val_steps=0).validated
    assert sorted(row for row, _ in seen) == data(films).clips("val").rows.tolist()


def test_few_clips_of_the_validation_are_spread_evenly(films):
    held = data(films, splits=(0.25, 0.75, 0.0), val_clips=3)
    (batch,) = next(iter(held.val_dataloader()))
    rows = held.clips("val").rows
    assert sorted(batch.index[:, 0].tolist()) == [rows[0], rows[4], rows[8]]


def test_pixels_are_those_of_the_files(films):
    for (batch,) in data(films, clips_per_epoch=12).train_dataloader():
        assert batch.video.dtype == torch.uint8 and batch.video.shape == (4, 4, 3, 16, 16) and batch.state is None
        for clip, (_, first) in zip(batch.video, batch.index.tolist()):
            assert numbers(clip) == list(range(first, first + 4))


def test_two_processes_get_the_batches_of_one(films, monkeypatch):
    def drawn(rank: int, ranks: int, batch_size: int) -> list[list[int]]:
        module = data(films, clips_per_epoch=48, batch_size=batch_size)
        module.trainer = place(rank, ranks)
        return [sorted(batch.key.tolist()) for (batch,) in module.train_dataloader()]

    parts, joint = [drawn(rank, 2, 4) for rank in range(2)], drawn(0, 1, 8)
    assert [sorted(first + second) for first, second in zip(*parts, strict=True)] == joint
    assert len(np.unique(joint)) == 48


def place(rank: int, ranks: int, accumulate: int = 1) -> object:
    about = {"global_rank": rank, "world_size": ranks, "current_epoch": 2, "accumulate_grad_batches": accumulate}
    return type("Place", (), about)


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 5), (2, 4), (3, 3), (5, 5)])
def test_an_epoch_has_whole_optimiser_steps(films, accumulate, batches):
    """Lightning makes a step of whatever was accumulated when an epoch ends: a shorter one than the others."""
    module = data(films, batch_size=4, clips_per_epoch=22)
    module.trainer = place(0, 1, accumulate)
    loader = module.train_dataloader()
    assert len(loader) == batches and len(list(loader)) == batches
    module.trainer = place(0, 1, 6)
    with pytest.raises(InputError, match="22 training clips a device fill no optimiser step of 24 .6 batches"):
        module.train_dataloader()


def test_too_few_clips_and_no_source_say_so(films):
    with pytest.raises(InputError, match="6 training clips a device fill no batch of 7"):
        data(films, batch_size=7).train_dataloader()
    with pytest.raises(InputError, match="sources is empty"):
        VideoData([])
    for wrong in ("workers=-1", "batch_size=0", "clips_per_epoch=0", "val_clips=-1", "seed=-1"):
        name, _, value = wrong.partition("=")
        with pytest.raises(InputError, match=f"{name} is {value}, expected at least"):
            data(films, **{name: int(value)})
    with pytest.raises(InputError, match="test split of .* is empty"):
        data(films, splits=(0.5, 0.5, 0.0)).clips("test")
    with pytest.raises(InputError, match="train has 2 datasets"):
        data(films, films).clips("train")


def test_labels_of_a_list_are_the_state(films):
    listing = films / "list.csv"
    listing.write_text("".join(f"{number:02}.mp4 {number % 5}\n" for number in range(12)))
    held = data(listing, clips_per_epoch=24)
    assert held.specs.observation.state_names == ("label",) == held.clips("val").labels
    assert (held.specs.observation.height, held.specs.observation.width) == (16, 16)
    for batch in (*trained(held), *(sample for samples in held.predict_dataloader() for sample in samples)):
        assert batch.state.dtype == torch.float32 and batch.state.shape == (len(batch.key), 4, 1)
        assert (batch.state == (batch.index[:, :1] % 5)[:, None]).all()
    mixed = data(listing, films, clips_per_epoch=24)  # not all have the label
    assert mixed.specs.observation.state_names == () and all(batch.state is None for batch in trained(mixed))


def test_images_are_videos_of_one_frame(films, tmp_path):
    for number in range(6):
        Image.fromarray(np.full((40, 50, 3), 30 * number, np.uint8)).save(tmp_path / f"{number}.png")
    held = data(tmp_path, tmp_path, films, frames=(1, 4, 2), clips_per_epoch=60, batch_size=30, splits=(1.0, 0.0, 0.0))
    for batch in held.train_dataloader():
        assert [sample.video.shape[1] for sample in batch] == [1, 2, 4]
        for images in (batch[0], batch[2]):
            assert (images.video == (images.index[:, 0] * 30)[:, None, None, None, None]).all()


def test_actions_of_a_video_stay_in_one_part(films, tmp_path):
    lines = [f"{number:02},{0.4 + 0.05 * action},0.75,{action % 2}" for number in range(12) for action in range(4)]
    (tmp_path / "a.csv").write_text("video_id,start,stop,act\n" + "\n".join(lines) + "\n")
    actions = Anticipation(str(tmp_path / "a.csv"), seconds=(0.1, 0.1))
    source = VideoSource(str(films), 1, fps=25, decoder="pyav", actions=actions)
    held = VideoData([source], splits=(0.5, 0.25, 0.25), size=16, workers=0, time_limit=None)
    parts = {part: held.clips(part) for part in ("train", "val", "test", "all")}
    homes = {part: {clips.index.path[row] for row in clips.rows.tolist()} for part, clips in parts.items()}
    assert len(parts["all"]) == 48 and [len(homes[part]) for part in ("train", "val", "test")] == [6, 3, 3]
    assert homes["train"] | homes["val"] | homes["test"] == homes["all"], "none is in two parts, none is lost"
    assert [len(parts[part]) for part in ("train", "val", "test")] == [24, 12, 12]


def test_the_split_of_single_videos_is_that_of_their_numbers(films):
    held = data(films, seed=3)
    numbers = split(range(12), (0.5, 0.25, 0.25), 3)
    assert tuple(held.clips(part).rows.tolist() for part in ("train", "val", "test")) == numbers
