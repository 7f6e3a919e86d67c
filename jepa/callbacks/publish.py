"""How callbacks log."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer


def publish(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Hand numbers to the trainer's loggers and to ``trainer.callback_metrics``, at whatever step it is."""
    # Not LightningModule.log: it drops what does not fall on a multiple of the trainer's own logging interval.
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)
