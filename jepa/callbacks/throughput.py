"""How fast a training is."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from jepa.callbacks.publish import publish
from jepa.errors import InputError
from jepa.schema import Sample


class Throughput(Callback):
    """Logs ``throughput/`` ``frames_per_second``, ``clips_per_second`` and ``ms_per_step`` over a window of batches.

    Waiting for data counts; validation, checkpoints between epochs and the first batch do not. Frames and clips are
    those of all processes. A batch is a Sample, or a list of what are samples or have a ``sample`` (clips with masks).

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
        self._ends: deque[tuple[float, int, int]] = deque(maxlen=window + 1)  # second, clips, frames

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ends.append((time.perf_counter(), *_counts(batch)))
        if len(self._ends) < 2 or trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        (start, _, _), *ends = self._ends
        seconds = ends[-1][0] - start
        clips, frames = (trainer.world_size * sum(counts) for counts in list(zip(*ends))[1:])
        rates = {"frames_per_second": frames / seconds, "clips_per_second": clips / seconds}
        rates["ms_per_step"] = 1000 * seconds / len(ends)
        publish(trainer, {f"throughput/{name}": value for name, value in rates.items()})


def _counts(batch: Any) -> tuple[int, int]:
    """Clips and frames of a batch."""
    parts = batch if isinstance(batch, list) else [batch]
    samples = [part if isinstance(part, Sample) else part.sample for part in parts]
    seen = [sample.video if sample.latent is None else sample.latent for sample in samples]
    return sum(len(clips) for clips in seen), sum(len(clips) * clips.shape[1] for clips in seen)
