"""Probes during the training: they see the encoder improve, change nothing, and choose the best checkpoint."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from jepa.checkpoints import load
from jepa.data.clips import split
from jepa.data.module import EpisodeData
from jepa.errors import InputError
from probes.online import OnlineProbe, evaluating
from probes.shard import labelled


class Noisy(LightningModule):
    """Draws from every generator that a training may draw from, and has a layer that counts in training mode."""

    def __init__(self, specs, rate: float = 1e-3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.world, self.losses, self.rate = World(specs), [], rate

    def training_step(self, sample, index):
        z = self.world.encode(sample)
        loss = (z - torch.randn_like(z)).square().mean() + 1e-3 * torch.rand(())
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class World(nn.Module):
    def __init__(self, specs) -> None:
        super().__init__()
        self.specs, self.modes = specs, []
        self.layers = nn.Sequential(nn.Linear(3 * 64 * 64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3))
        self.frozen = nn.Dropout(0.5).eval()

    def encode(self, sample):
        assert sample.state is None or self.training, "the probe showed the labels to the encoder"
        self.modes.append((self.training, torch.is_grad_enabled()))
        flat = sample.video.flatten(2).float() / 255
        return self.layers(flat.flatten(0, 1)).unflatten(0, flat.shape[:2])[:, :, None]


def data(workshop, **options) -> EpisodeData:
    return EpisodeData(str(workshop.data("two_rooms")), frames=2, batch_size=4, windows_per_epoch=24, **options)


def probe(**options) -> OnlineProbe:
    return OnlineProbe(**({"target": "x,y", "every": 3, "limit": 80, "k": 5, "batch": 16} | options))


QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def fit(module, episodes, folder, callbacks=(), **options) -> None:
    trainer = Trainer(max_steps=6, max_epochs=-1, callbacks=[*callbacks], default_root_dir=folder, limit_val_batches=0,
                      enable_checkpointing=False, **QUIET, **options)  # fmt: skip
    trainer.fit(module, datamodule=episodes)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_training_is_bit_for_bit_the_one_without(workshop, tmp_path, accumulate):
    runs = []
    for callbacks in ([], [probe()]):
        episodes = data(workshop)
        module = Noisy(episodes.specs)
        torch.manual_seed(1)
        fit(module, episodes, tmp_path, callbacks, accumulate_grad_batches=accumulate)
        runs.append(module)
    plain, probed = runs
    assert plain.losses == probed.losses and len(plain.losses) == 6 * accumulate
    assert all(torch.equal(a, probed.state_dict()[name]) for name, a in plain.state_dict().items())
    read = [mode for mode in probed.world.modes if mode not in plain.world.modes]
    assert set(read) == {(False, False)} and len(read) == 3 * 5  # steps 0, 3 and 6, in batches of 16 of 80
    assert probed.world.training and not probed.world.frozen.training


def test_modes_come_back_part_by_part(workshop):
    world = World(None)
    world.reads = "target"
    world.layers[1].eval()
    with evaluating(world, "context"):
        assert not any(module.training for module in world.modules()) and world.reads == "context"
    assert world.training and not world.layers[1].training and not world.frozen.training and world.reads == "target"


def test_the_best_checkpoint_by_probe_is_kept_also_after_a_resume(workshop, tmp_path, monkeypatch):
    """With given scores, best.ckpt is the step of the highest one, in one run as in two."""
    given = {0: 0.9, 3: 0.2, 6: 0.7, 9: 0.5, 12: 0.6}
    monkeypatch.setattr(OnlineProbe, "_scores", lambda self, z, numbers: {"linear": given[self._step], "knn": 0.0})

    def run(steps, path=None):
        best = ModelCheckpoint(tmp_path, "best", "probe/linear", mode="max", every_n_train_steps=3,
                               enable_version_counter=False)  # fmt: skip
        last = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=3, enable_version_counter=False)
        episodes = data(workshop)
        trainer = Trainer(max_steps=steps, max_epochs=-1, callbacks=[probe(), last, best], limit_val_batches=0,
                          default_root_dir=tmp_path, **QUIET)  # fmt: skip
        trainer.fit(Noisy(episodes.specs), datamodule=episodes, ckpt_path=path, weights_only=False)
        return best

    run(9)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 6
    best = run(12, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 12
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 6
    assert float(best.best_model_score) == pytest.approx(0.7)
    assert sorted(path.name for path in tmp_path.glob("best*")) == ["best.ckpt"]


def test_the_scores_are_those_of_the_probes(workshop):
    callback, episodes = probe(), data(workshop)
    shard = labelled(episodes, "train", "x,y", 0, 80)
    callback._shard, callback._known = shard, callback._halves(shard)
    numbers = list(range(len(shard)))
    known = callback._known
    assert set(shard.episode[known]).isdisjoint(shard.episode[~known])
    exact = callback._scores(shard.y[:, None, None], numbers)
    assert exact["linear"] > 0.999 and 0.3 < exact["knn"] < 1
    noise = torch.randn(80, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    assert callback._scores(noise, numbers)["linear"] < 0.2
    assert all(map(lambda value: value != value, callback._scores(noise * torch.nan, numbers).values()))


def test_a_shard_is_spread_evenly_and_read_as_it_is_stored(workshop):
    episodes = data(workshop, size=32)
    shard = labelled(episodes, "train", "x", 0, 50)
    train = split(episodes.episodes, episodes.splits, episodes.seed)[0]
    assert len(shard) == 50 and set(shard.episode) == set(train)
    batches = list(shard.batches(16))
    assert [len(numbers) for numbers, _ in batches] == [16, 16, 16, 2]
    assert all(sample.video.shape[1:] == (1, 3, 32, 32) and sample.state is None for _, sample in batches)
    again = list(shard.batches(16))
    assert all(a[1].video is b[1].video for a, b in zip(batches, again))  # small: read once
    place = episodes.episodes.specs.observation.state_names.index("x")
    first = episodes.episodes.read(int(shard.episode[0]), [0])
    assert float(shard.y[0, 0]) == pytest.approx(float(first.state[0, place]))


def test_films_are_read_by_their_labels(workshop):
    from jepa.data.video_module import VideoData, VideoSource

    workshop.videos()
    folder = workshop.folder / "data/moving_digits/train"
    films = VideoData([VideoSource(str(folder), frames=4)], splits=(1.0, 0.0, 0.0), size=32, time_limit=None, workers=0)
    shard = labelled(films, "train", "speed", 3, 100)
    assert shard.y.tolist() == [0, 1, 2, 0, 1, 2] and len(set(shard.episode)) == 6
    ((numbers, sample),) = shard.batches(16)
    assert numbers == [*range(6)] and sample.video.shape == (6, 4, 3, 32, 32)
    with pytest.raises(InputError, match="unknown target 'sped'.*did you mean 'speed'"):
        labelled(films, "train", "sped")


def test_a_fit_from_the_configuration(jepa, workshop):
    """The config of the small form: curves of the probe beside the losses, and a best checkpoint that loads."""
    workshop.data("two_rooms")
    small = ("--vars.steps=4", "--vars.check=2", "--vars.run=probed", "--vars.dim=16", "--data.batch_size=4",
             "--data.windows_per_epoch=16", "--data.val_windows=4", "--model.world.predictor.init_args.width=32",
             "--model.world.predictor.init_args.depth=1", "--trainer.accelerator=cpu")  # fmt: skip
    assert jepa("fit", "-c", "pretrain/two_rooms_probed", *small).code == 0
    with (workshop.folder / "runs/probed/logs/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("probe/linear")]
    assert [int(row["step"]) for row in rows] == [0, 2, 4] and all(row["probe/knn"] for row in rows)
    best = torch.load(workshop.folder / "runs/probed/best.ckpt", weights_only=True)["global_step"]
    scores = {int(row["step"]): float(row["probe/linear"]) for row in rows[1:]}
    assert best == max(scores, key=scores.get)
    assert load(str(workshop.folder / "runs/probed/best.ckpt")).encoder.dim == 16


def test_what_cannot_be_probed_is_said_before_the_first_step(workshop, tmp_path):
    episodes = data(workshop)
    for options, words in (
        ({"target": "z"}, "unknown target 'z'"),
        ({"k": 999}, "k=999 neighbours among"),
        ({"classes": 2}, "not a class number"),
        ({"target": "wall_x"}, "constant over half of the shard"),
        ({"which": "context"}, "has one encoder"),
        ({"part": "val", "limit": 4, "k": 1}, "1 episode in its val part"),
    ):
        with pytest.raises(InputError, match=words):
            fit(Noisy(episodes.specs), data(workshop), tmp_path, [probe(**options)])
    with pytest.raises(InputError, match="every=0"):
        probe(every=0)
    with pytest.raises(InputError, match="k=0"):
        probe(k=0)
