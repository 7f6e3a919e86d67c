"""The watch fires on a run that collapses and keeps silent on a healthy one; spikes are skipped; frames are counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from jepa.callbacks import CollapseWatch, LossSpikeGuard, Throughput, collapse_signals
from jepa.errors import InputError
from jepa.objectives import Covariance, Objective, Regression, TemporalSimilarity, Variance
from jepa.schema import Prediction, Sample

WALK, PIXELS, D = 4, 24, 8


def walks(count: int) -> list[Sample]:
    """Batches of random walks in 4 dimensions, drawn as 24 pixels that mix them with a background."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2 * WALK, PIXELS, generator=generator) / WALK**0.5
    batches = []
    for _ in range(count):
        action = torch.randn(32, 5, WALK, generator=generator)
        start = torch.randn(32, 1, WALK, generator=generator)
        state = torch.cat((start, start + 0.5 * action.cumsum(1)), 1)
        background = torch.randn(32, 1, WALK, generator=generator).expand_as(state)
        pixels = torch.tanh(torch.cat((state, background), -1) @ mix)
        batches.append(Sample(video=pixels.view(32, 6, 1, 4, 6), action=action))
    return batches


class TinyWorld(LightningModule):
    """An encoder whose target is itself, gradient included: what it learns is up to the objectives."""

    def __init__(self, objectives: list[Objective], lr: float = 3e-3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 64), nn.GELU(), nn.Linear(64, D))
        self.predictor = nn.Sequential(nn.Linear(D + WALK, 64), nn.GELU(), nn.Linear(64, D))
        self.objectives, self.lr = nn.ModuleList(objectives), lr

    def training_step(self, sample: Sample, index: int) -> dict[str, object]:
        z = self.encoder(sample.video.flatten(2)).unsqueeze(2)
        p = z[:, :-1] + self.predictor(torch.cat((z[:, :-1], sample.action.unsqueeze(2)), -1))
        loss = sum(o.weight * o(Prediction(z=z, h=z, action=sample.action, p=p)) for o in self.objectives)
        z, p = z.detach(), p.detach()
        return {"loss": loss, "prediction": Prediction(z=z, h=z, action=sample.action, p=p)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def fit(module: LightningModule, callbacks: list, data: list, folder, **options) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(module, DataLoader(data, batch_size=None, collate_fn=lambda batch: batch))
    return trainer


def watch() -> CollapseWatch:
    # The walks move fast: healthy latents have half of their spread within a trajectory.
    return CollapseWatch(every_n_steps=20, after=200, patience=3, time_below=0.2)


@pytest.fixture(scope="module")
def data() -> list[Sample]:
    return walks(400)


def test_watch_fires_on_a_run_that_collapses(data, tmp_path, caplog):
    fired = watch()
    with caplog.at_level(logging.WARNING, logger="jepa.callbacks"):
        trainer = fit(TinyWorld([Regression()]), [fired], data, tmp_path)
    assert "std" in fired.findings
    lines = [record.getMessage() for record in caplog.records if record.name == "jepa.callbacks.collapse"]
    assert len(lines) == len(fired.findings), "every kind is warned of once"
    shrinks = next(line for line in lines if ": std is" in line)
    assert "below 0.05" in shrinks and "raise the weight of Variance" in shrinks and "\n" not in shrinks
    assert trainer.callback_metrics["collapse/std"] < 0.05


def test_watch_is_silent_on_a_healthy_run(data, tmp_path):
    silent = watch()
    objectives = [Regression(), Variance(weight=4), Variance(over="time", margin=0.5), Covariance()]
    trainer = fit(TinyWorld(objectives), [silent], data, tmp_path)
    assert silent.findings == {}
    healthy = {name: trainer.callback_metrics[f"collapse/{name}"].item() for name in ("rankme", "std", "gain")}
    assert healthy["rankme"] > 4 and healthy["std"] > 0.8 and healthy["gain"] > 0.3


def test_watch_sees_latents_that_forget_what_moves(data, tmp_path):
    """Variance over the batch is content with the background, temporal similarity pays for forgetting the walk."""
    fired = watch()
    objectives = [Regression(), Variance(weight=20), Covariance(), TemporalSimilarity(100)]
    trainer = fit(TinyWorld(objectives), [fired], data, tmp_path)
    assert set(fired.findings) == {"std_time / std"}
    assert trainer.callback_metrics["collapse/std"] > 0.8


def judge(z: torch.Tensor, p: torch.Tensor | None = None) -> set[str]:
    """What a watch finds in latents that stay as they are."""
    one = CollapseWatch(patience=1)
    prediction = Prediction(z=z, h=z, action=z, p=p)
    one._judge(collapse_signals(prediction, 512), one.alarms(prediction), 1000)
    return set(one.findings)


def test_each_kind_of_collapse_has_its_own_finding():
    torch.manual_seed(0)
    z = torch.randn(64, 6, 2, 16)
    assert judge(z) == set()
    assert judge(z + 20) == {"cosine"}
    assert judge(z[..., :1] * torch.randn(16)) == {"rankme"}
    assert judge(0.01 * z) == {"std"}
    assert judge(torch.randn(64, 1, 2, 16) + 0.01 * z) == {"std_time / std"}
    assert judge(z, p=-z[:, 1:]) == {"gain"}


def test_gain_of_a_rollout_compares_with_the_latent_before_it():
    h = torch.arange(5.0).view(1, 5, 1, 1).expand(2, 5, 1, 3)
    copied = Prediction(z=h, h=h, action=h, rollout=h[:, 1:2].expand(-1, 3, -1, -1))
    assert collapse_signals(copied, 8)["gain"] == pytest.approx(0)


def masked(z: torch.Tensor, p: torch.Tensor, h: torch.Tensor) -> Prediction:
    return Prediction(z=z, h=h, action=torch.zeros(len(z), 0, 0), p=p)


def test_gain_of_a_masked_forecast_compares_with_the_mean_target():
    torch.manual_seed(0)
    z, h = torch.randn(16, 1, 9, 8), torch.randn(16, 4, 5, 8) + 3
    mean = h.mean((0, 1, 2)).expand_as(h)
    for p, gain in ((mean, 0.0), (h, 1.0), ((h + mean) / 2, 0.75), (2 * mean - h, -3.0)):
        signals = collapse_signals(masked(z, p, h), 512)
        assert signals["gain"] == pytest.approx(gain, abs=1e-5) and "std_time" not in signals
    whole = torch.randn(16, 3, 9, 8)
    assert {"std_time", "gain", "rankme"} <= set(collapse_signals(masked(whole, h, h), 512))
    assert set(collapse_signals(masked(z[:1], h[:1], h[:1]), 512)) == {"gain"}, "one clip has no spread"


def test_masked_models_are_warned_of_in_their_own_words():
    torch.manual_seed(0)
    z, h = torch.randn(64, 1, 9, 16), torch.randn(64, 2, 5, 16)

    def sentence(prediction: Prediction) -> dict[str, str]:
        one = CollapseWatch(patience=1)
        one._judge(collapse_signals(prediction, 512), one.alarms(prediction), 1000)
        return one.findings

    assert sentence(masked(z, h, h)) == {}
    worse = sentence(masked(z, -h, h))
    assert set(worse) == {"gain"} and "mean of the targets" in worse["gain"] and "action" not in worse["gain"]
    assert set(sentence(masked(0.01 * z, h, h))) == {"std"}
    assert sentence(masked(z + 20, h, h)) == {}, "tokens share a large mean"


def test_watch_reports_latents_that_are_not_finite(data, tmp_path):
    found = CollapseWatch(every_n_steps=1)
    broken = [Sample(video=data[0].video * float("nan"), action=data[0].action)]
    fit(TinyWorld([Regression()]), [found], broken, tmp_path)
    assert set(found.findings) == {"finite"}


def test_watch_asks_for_a_prediction(data, tmp_path):
    class Silent(TinyWorld):
        def training_step(self, sample: Sample, index: int) -> torch.Tensor:
            return super().training_step(sample, index)["loss"]

    with pytest.raises(InputError, match="'prediction'"):
        fit(Silent([Regression()]), [CollapseWatch(every_n_steps=1)], data[:2], tmp_path)


def test_throughput_counts_frames_of_the_window(data, tmp_path):
    trainer = fit(TinyWorld([Regression()]), [Throughput(every_n_steps=10, window=5)], data[:20], tmp_path)
    rate = trainer.callback_metrics["throughput/frames_per_second"]
    milliseconds = trainer.callback_metrics["throughput/ms_per_step"]
    assert (rate * milliseconds / 1000).item() == pytest.approx(32 * 6, rel=1e-3)
    clips = trainer.callback_metrics["throughput/clips_per_second"]
    assert (rate / clips).item() == pytest.approx(6, rel=1e-3)


@dataclass
class WithMasks:
    sample: Sample


@pytest.mark.parametrize("wrap", [lambda sample: sample, WithMasks], ids=["samples", "with masks"])
def test_throughput_counts_clips_of_several_lengths(wrap, tmp_path):
    class Still(TinyWorld):
        def training_step(self, batch: list, index: int) -> torch.Tensor:
            return sum(parameter.sum() for parameter in self.parameters())

    lengths = [wrap(Sample(video=torch.zeros(size, frames, 1, 4, 6))) for size, frames in ((5, 2), (3, 8))]
    trainer = fit(Still([]), [Throughput(every_n_steps=2, window=2)], [lengths] * 4, tmp_path)
    rates = {name: trainer.callback_metrics[f"throughput/{name}"] for name in ("frames_per_second", "clips_per_second")}
    assert (rates["frames_per_second"] / rates["clips_per_second"]).item() == pytest.approx(34 / 8)


class Recorder(LossSpikeGuard):
    """The guard, writing down the parameters after every step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen = [*getattr(self, "seen", []), pl_module.encoder[0].weight.detach().clone()]


@pytest.mark.parametrize("factor", [100.0, float("nan")])
def test_guard_skips_a_spike_and_only_it(factor, data, tmp_path):
    spiked = [*data[:20], Sample(video=data[20].video * factor, action=data[20].action), *data[21:24]]
    guard = Recorder(window=10)
    fit(TinyWorld([Regression(), Variance()]), [guard], spiked, tmp_path)
    moved = [not torch.equal(a, b) for a, b in zip(guard.seen, guard.seen[1:])]
    assert guard.skips == 1 and moved == [True] * 19 + [False] + [True] * 3
    assert torch.isfinite(guard.seen[-1]).all()


def test_guard_stops_when_the_loss_stays_broken(data, tmp_path):
    broken = [Sample(video=data[0].video * float("nan"), action=data[0].action)] * 4
    with pytest.raises(InputError, match="after 2 skipped steps"):
        fit(TinyWorld([Regression()]), [LossSpikeGuard(max_skips=2)], broken, tmp_path)


def test_guard_remembers_its_window_and_its_skips():
    guard, resumed = LossSpikeGuard(window=3), LossSpikeGuard(window=3)
    guard._losses.extend([1.0, 2.0, 3.0])
    guard.skips = 4
    resumed.load_state_dict(guard.state_dict())
    assert resumed.skips == 4 and resumed._is_spike(50.0) and not resumed._is_spike(3.0)
