"""Is the representation alive? Logged along the training, and said in words when it is not."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from jepa.callbacks.publish import publish
from jepa.errors import InputError
from jepa.metrics import feature_std, mean_cosine, prediction_gain, rankme, time_std
from jepa.schema import Prediction

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """When a signal means trouble, in words."""

    signal: str
    threshold: float
    meaning: str
    advice: str
    above: bool = False

    def rings(self, value: float) -> bool:
        return value > self.threshold if self.above else value < self.threshold

    def __str__(self) -> str:
        return f"{'above' if self.above else 'below'} {self.threshold:g}: {self.meaning}; {self.advice}"


@dataclass(frozen=True)
class _Limits:
    rank_below: float
    std_below: float
    time_below: float
    cosine_above: float
    gain_below: float


def _alarms(limits: _Limits, dim: int, masked: bool) -> tuple[Alarm, ...]:
    spread = "raise the weight of Variance, Covariance or SIGReg, or the EMA momentum"
    cosine_above = math.inf if masked else limits.cosine_above
    copy = "the mean of the targets" if masked else "copying the last latent"
    check = "the grid of the masks is the encoder's" if masked else "action[t] leads from frame t to t+1"
    return (
        Alarm("rankme", min(limits.rank_below, dim / 2), "the latents span almost no dimensions", spread),
        Alarm("std", limits.std_below, "the latents shrink to a point", spread),
        Alarm("cosine", cosine_above, "all latents point the same way", spread, above=True),
        Alarm(
            "std_time / std",
            limits.time_below,
            "the latents hold the background and hardly what moves",
            "add Variance(over='time'), raise InverseDynamics, give TemporalSimilarity a later ramp",
        ),
        Alarm(
            "gain",
            limits.gain_below,
            f"forecasts are worse than {copy}",
            f"train longer, lower the learning rate, or check that {check}",
        ),
    )


class CollapseWatch(Callback):
    """Logs whether the representation is alive and warns in words, once per kind, when it collapses.

    Reads ``outputs["prediction"]`` of the training step and logs, from process zero's share of the batch:

    * ``collapse/rankme``: effective number of dimensions of the latents (tokens averaged), mean removed;
    * ``collapse/std``, ``collapse/std_min``: mean and smallest standard deviation of a dimension over the frames (of a
      masked model over its visible tokens, whose places differ);
    * ``collapse/std_time``: mean standard deviation of a dimension within a trajectory. Beside a healthy
      ``collapse/std`` a small one says that the latents hold what stays the same, the background;
    * ``collapse/cosine``: mean cosine between latents of different frames;
    * ``collapse/gain``: one minus the squared error of the forecast over that of copying the last latent (the
      teacher-forced forecast where there is one, else the rollout). Of a masked model: one minus the squared error of
      the forecast over that of always answering the mean target of the batch.

    A masked model that encodes only what is visible has one step and no ``std_time``. The latents of its clips are
    means of many tokens, which share most of what they hold: their cosine is near one from the first steps on, and is
    logged without a warning.

    Args:
        every_n_steps: optimiser steps between two measurements.
        samples: at most this many latents enter the rank and the cosine.
        after: optimiser steps before the first warning; an untrained network may look collapsed.
        patience: measurements in a row that must be bad before the warning.
        rank_below: warn when RankMe is below (or below half the width, for narrower latents).
        std_below: warn when the mean standard deviation is below. Meant for latents of about unit scale.
        time_below: warn when std_time is below this fraction of std.
        cosine_above: warn when the mean cosine is above; not of masked models.
        gain_below: warn when the prediction gain is below.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        samples: int = 1024,
        after: int = 200,
        patience: int = 3,
        rank_below: float = 3.0,
        std_below: float = 0.05,
        time_below: float = 0.1,
        cosine_above: float = 0.95,
        gain_below: float = 0.0,
    ) -> None:
        if min(every_n_steps, patience) < 1 or samples < 2:
            raise InputError(
                f"CollapseWatch(every_n_steps={every_n_steps}, patience={patience}, samples={samples}): expected at "
                "least 1, 1 and 2; raise them"
            )
        self.every_n_steps, self.samples, self.after, self.patience = every_n_steps, samples, after, patience
        self.findings: dict[str, str] = {}
        """What was warned of so far: signal -> sentence."""
        self._bad: dict[str, int] = {}
        self._limits = _Limits(rank_below, std_below, time_below, cosine_above, gain_below)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step % self.every_n_steps:
            return
        prediction = outputs.get("prediction") if isinstance(outputs, dict) else None
        if not isinstance(prediction, Prediction):
            raise InputError(
                f"CollapseWatch was given the outputs of {type(pl_module).__name__}.training_step without a "
                "Prediction; expected {'loss': ..., 'prediction': ...}: return it or drop the callback"
            )
        if not torch.isfinite(prediction.z).all():
            self._warn("finite", f"step {step}: the latents hold NaN or infinite numbers; lower the learning rate")
            return
        signals = collapse_signals(prediction, self.samples)
        publish(trainer, {f"collapse/{name}": value for name, value in signals.items()})
        if step >= self.after:
            self._judge(signals, self.alarms(prediction), step)

    def alarms(self, prediction: Prediction) -> tuple[Alarm, ...]:
        """When signals of such a prediction mean trouble."""
        return _alarms(self._limits, prediction.z.shape[-1], _is_masked(prediction))

    def _judge(self, signals: dict[str, float], alarms: tuple[Alarm, ...], step: int) -> None:
        values = dict(signals)
        if "std_time" in values:
            values["std_time / std"] = values["std_time"] / max(values["std"], 1e-12)
        for alarm in alarms:
            if alarm.signal not in values:
                continue
            value = values[alarm.signal]
            self._bad[alarm.signal] = self._bad.get(alarm.signal, 0) + 1 if alarm.rings(value) else 0
            if self._bad[alarm.signal] == self.patience:
                self._warn(alarm.signal, f"step {step}: {alarm.signal} is {value:.3g}, {alarm}")

    def _warn(self, signal: str, sentence: str) -> None:
        if signal not in self.findings:
            self.findings[signal] = sentence
            log.warning("collapse? %s", sentence)


def collapse_signals(prediction: Prediction, samples: int) -> dict[str, float]:
    """The signals of :class:`CollapseWatch` by name; those that the prediction does not allow are left out."""
    frames = prediction.z.float().mean(2).flatten(0, 1)
    signals: dict[str, Tensor] = {}
    if len(frames) > 1:
        some = frames[torch.linspace(0, len(frames) - 1, min(samples, len(frames))).long().to(frames.device)]
        std = feature_std(prediction.z)
        signals |= {"rankme": rankme(some), "std": std.mean(), "std_min": std.min(), "cosine": mean_cosine(some)}
    if prediction.z.shape[1] > 1:
        signals["std_time"] = time_std(prediction.z).mean()
    if (gain := _gain(prediction)) is not None:
        signals["gain"] = gain
    if not signals:
        return {}
    values = torch.stack([signal.float() for signal in signals.values()]).tolist()  # one transfer
    return dict(zip(signals, values))


def _is_masked(prediction: Prediction) -> bool:
    """Whether the forecasts are of the targets' own tokens: those of a world lack the first step."""
    return prediction.p is not None and prediction.p.shape[1] == prediction.h.shape[1]


def _gain(prediction: Prediction) -> Tensor | None:
    h = prediction.h
    if _is_masked(prediction):
        return prediction_gain(prediction.p, h, h.float().mean((0, 1, 2)).expand_as(h))
    if prediction.p is not None:
        return prediction_gain(prediction.p, h[:, 1:], h[:, :-1])
    if prediction.rollout is None:
        return None
    steps = prediction.rollout.shape[1]
    start = h.shape[1] - steps
    return prediction_gain(prediction.rollout, h[:, start:], h[:, start - 1 : start].expand(-1, steps, -1, -1))
