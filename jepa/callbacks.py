"""Lightning callbacks that watch a training: collapse, throughput, loss spikes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from jepa.errors import InputError
from jepa.metrics import feature_std, mean_cosine, prediction_gain, rankme, time_std
from jepa.schema import Prediction, Sample

log = logging.getLogger(__name__)


def _publish(trainer: Trainer, metrics: dict[str, float]) -> None:
    # Not LightningModule.log: it drops what does not fall on a multiple of the trainer's own logging interval.
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


@dataclass(frozen=True)
class _Alarm:
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


def _alarms(
    dim: int, rank_below: float, std_below: float, time_below: float, cosine_above: float, gain_below: float
) -> tuple[_Alarm, ...]:
    spread = "raise the weight of Variance, Covariance or SIGReg, or the EMA momentum"
    return (
        _Alarm("rankme", min(rank_below, dim / 2), "the latents span almost no dimensions", spread),
        _Alarm("std", std_below, "the latents shrink to a point", spread),
        _Alarm("cosine", cosine_above, "all latents point the same way", spread, above=True),
        _Alarm(
            "std_time / std",
            time_below,
            "the latents hold the background and hardly what moves",
            "add Variance(over='time'), raise InverseDynamics, give TemporalSimilarity a later ramp",
        ),
        _Alarm(
            "gain",
            gain_below,
            "forecasts are worse than copying the last latent",
            "train longer, lower the learning rate, or check that action[t] leads from frame t to t+1",
        ),
    )


class CollapseWatch(Callback):
    """Logs whether the representation is alive and warns in words, once per kind, when it collapses.

    Reads ``outputs["prediction"]`` of the training step and logs, from process zero's share of the batch:

    * ``collapse/rankme``: effective number of dimensions of the latents (tokens averaged), mean removed;
    * ``collapse/std``, ``collapse/std_min``: mean and smallest standard deviation of a dimension over the frames;
    * ``collapse/std_time``: mean standard deviation of a dimension within a trajectory. Beside a healthy
      ``collapse/std`` a small one says that the latents hold what stays the same, the background;
    * ``collapse/cosine``: mean cosine between latents of different frames;
    * ``collapse/gain``: one minus the squared error of the forecast over that of copying the last latent (the
      teacher-forced forecast where there is one, else the rollout).

    Args:
        every_n_steps: optimiser steps between two measurements.
        samples: at most this many latents enter the rank and the cosine.
        after: optimiser steps before the first warning; an untrained network may look collapsed.
        patience: measurements in a row that must be bad before the warning.
        rank_below: warn when RankMe is below (or below half the width, for narrower latents).
        std_below: warn when the mean standard deviation is below. Meant for latents of about unit scale.
        time_below: warn when std_time is below this fraction of std.
        cosine_above: warn when the mean cosine is above.
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
        self._limits = (rank_below, std_below, time_below, cosine_above, gain_below)

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
        _publish(trainer, {f"collapse/{name}": value for name, value in signals.items()})
        if step >= self.after:
            self._judge(signals, prediction.z.shape[-1], step)

    def _judge(self, signals: dict[str, float], dim: int, step: int) -> None:
        values = dict(signals)
        if "std_time" in values:
            values["std_time / std"] = values["std_time"] / max(values["std"], 1e-12)
        for alarm in _alarms(dim, *self._limits):
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
    some = frames[torch.linspace(0, len(frames) - 1, min(samples, len(frames))).long().to(frames.device)]
    std = feature_std(prediction.z)
    signals = {"rankme": rankme(some), "std": std.mean(), "std_min": std.min(), "cosine": mean_cosine(some)}
    if prediction.z.shape[1] > 1:
        signals["std_time"] = time_std(prediction.z).mean()
    if (gain := _gain(prediction)) is not None:
        signals["gain"] = gain
    names = list(signals)
    return dict(zip(names, torch.stack([signals[name].float() for name in names]).tolist()))  # one transfer


def _gain(prediction: Prediction) -> Tensor | None:
    h = prediction.h
    if prediction.p is not None:
        return prediction_gain(prediction.p, h[:, 1:], h[:, :-1])
    if prediction.rollout is None:
        return None
    steps = prediction.rollout.shape[1]
    start = h.shape[1] - steps
    return prediction_gain(prediction.rollout, h[:, start:], h[:, start - 1 : start].expand(-1, steps, -1, -1))


class Throughput(Callback):
    """Logs ``throughput/frames_per_second`` and ``throughput/ms_per_step`` over a sliding window of batches.

    Waiting for data counts; validation, checkpoints between epochs and the first batch do not. Frames are those of
    all processes.

    Args:
        every_n_steps: optimiser steps between two log entries.
        window: batches that the mean is taken over.
    """

    def __init__(self, every_n_steps: int = 50, window: int = 50) -> None:
        if every_n_steps < 1 or window < 1:
            raise InputError(
                f"Throughput(every_n_steps={every_n_steps}, window={window}): expected 1 or more; raise them"
            )
        self.every_n_steps = every_n_steps
        self._ends: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Sample, batch_idx: int
    ) -> None:
        self._ends.append((time.perf_counter(), math.prod(batch.video.shape[:2]) * trainer.world_size))
        if len(self._ends) < 2 or trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        seconds = self._ends[-1][0] - self._ends[0][0]
        steps = len(self._ends) - 1
        frames = sum(count for _, count in list(self._ends)[1:])
        _publish(
            trainer,
            {"throughput/frames_per_second": frames / seconds, "throughput/ms_per_step": 1000 * seconds / steps},
        )


class LossSpikeGuard(Callback):
    """Skips optimiser steps whose loss is not finite or far above the recent ones (V-JEPA 2.1).

    A skipped step changes neither the parameters nor the optimiser's moments: its gradients are dropped. All
    processes decide alike, on their mean loss. For automatic optimisation; waits for the loss at every step.

    Raises:
        InputError: the loss is not finite and no skips are left.

    Args:
        deviations: skip when the loss exceeds the mean of the window by more than this many standard deviations.
        window: accepted losses that the mean and the deviation are taken over; nothing is skipped for being large
            before it is full.
        max_skips: after this many the guard only warns (the loss has changed for good), or stops at a loss that is not
            finite.
    """

    def __init__(self, deviations: float = 5.0, window: int = 300, max_skips: int = 10) -> None:
        if deviations <= 0 or window < 2 or max_skips < 0:
            raise InputError(
                f"LossSpikeGuard(deviations={deviations}, window={window}, max_skips={max_skips}): expected more than "
                "0, at least 2, at least 0; change the one that is not"
            )
        self.deviations, self.max_skips = deviations, max_skips
        self.skips = 0
        self._losses: deque[float] = deque(maxlen=window)
        self._pending: list[Tensor] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._pending.append(loss.detach())  # several when gradients are accumulated

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        loss = float(trainer.strategy.reduce(torch.stack(self._pending).sum(), reduce_op="mean"))
        self._pending.clear()
        if not self._is_spike(loss):
            self._losses.append(loss)
        elif self.skips < self.max_skips:
            self.skips += 1
            optimizer.zero_grad(set_to_none=True)  # without gradients a parameter and its moments are left alone
            log.warning(
                "step %d skipped: loss %.4g (skip %d of %d)", trainer.global_step, loss, self.skips, self.max_skips
            )
        elif not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {trainer.global_step} after {self.skips} skipped steps; expected a finite "
                "number: lower the learning rate or resume from an earlier checkpoint"
            )
        else:
            log.warning("step %d: loss %.4g is a spike, no skips are left", trainer.global_step, loss)
            self._losses.append(loss)

    def _is_spike(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if len(self._losses) < self._losses.maxlen:
            return False
        mean = fmean(self._losses)
        deviation = math.sqrt(fmean((past - mean) ** 2 for past in self._losses))
        return loss > mean + self.deviations * deviation

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "skips": self.skips}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses.extend(state_dict["losses"])
        self.skips = state_dict["skips"]
