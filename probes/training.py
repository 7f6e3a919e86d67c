"""Train probes by gradient on cached features: every setting of a grid at once, on the same batches."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from jepa.errors import InputError
from probes.base import Probe
from probes.cache import Examples, batches, hold_out

MEASURED = 8192  # examples at most whose features are looked at before gradient training, to standardise them


class ProbeTask(lightning.LightningModule):
    """Trains one copy of a probe per learning rate and weight decay, all on the same batches (as V-JEPA 2 does).

    AdamW, cosine to zero. The best head is the one of lowest loss on held-out training episodes; the published
    protocol takes the best on the test data, which flatters.

    Args:
        probe: a built probe.
        lr: peak learning rates.
        weight_decay: weight decays.
    """

    def __init__(self, probe: Probe, lr: Sequence[float] = (1e-3,), weight_decay: Sequence[float] = (0.01,)) -> None:
        super().__init__()
        self.settings = [{"lr": rate, "weight_decay": decay} for rate in lr for decay in weight_decay]
        if not self.settings:
            raise InputError("lr and weight_decay: expected at least one of each, give for example [0.001] and [0.01]")
        self.heads = nn.ModuleList(copy.deepcopy(probe) for _ in self.settings)
        self.held_out = torch.full((len(self.heads),), float("inf"))
        self._sums = torch.zeros(len(self.heads), dtype=torch.float64)
        self._count = 0

    def _losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        z, y = batch
        return torch.stack([head.loss(head(z), y) for head in self.heads])

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        losses = self._losses(batch)
        self.log("train/loss", losses.detach().min(), prog_bar=True)
        return losses.sum()  # the heads share no parameter, so each gets its own gradient

    def on_validation_epoch_start(self) -> None:
        self._sums.zero_()
        self._count = 0

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._sums += self._losses(batch).double().cpu() * len(batch[1])
        self._count += len(batch[1])

    def on_validation_epoch_end(self) -> None:
        self.held_out = (self._sums / self._count).float()
        self.log("val/loss", self.held_out.min(), prog_bar=True)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        for head in self.heads:  # each alone: one that diverges must not shrink the steps of the others
            nn.utils.clip_grad_norm_(head.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [{"params": head.parameters(), **setting} for head, setting in zip(self.heads, self.settings)]
        optimiser = torch.optim.AdamW(groups)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def best(self) -> int:
        """Number of the head of lowest held-out loss."""
        if not self.held_out.isfinite().any():
            raise InputError("no head has a finite held-out loss: lower lr")
        return int(self.held_out.nan_to_num(float("inf")).argmin())


@torch.no_grad()
def predict(probe: Probe, examples: Examples, batch: int = 1024) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all examples, on the CPU."""
    probe.eval()
    batch = min(batch, examples.affordable)
    device = next((value.device for value in (*probe.parameters(), *probe.buffers())), torch.device("cpu"))
    parts = [(probe(z.to(device)).cpu(), y) for z, y in batches(examples, batch)]
    return torch.cat([part for part, _ in parts]), torch.cat([y for _, y in parts])


def sweep(
    probe: Probe,
    examples: Examples,
    epochs: int,
    batch: int,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    seed: int,
    accelerator: str,
) -> tuple[Probe, dict[str, Any]]:
    """Gradient training; returns the chosen head and how it was chosen."""
    part, held = hold_out(examples, 0.1, seed)
    some = np.random.default_rng(seed).permutation(len(part))[: min(MEASURED, part.affordable)]
    probe.build(part[np.sort(some)][0], part.y)
    task = ProbeTask(probe, lr, weight_decay)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        check_val_every_n_epoch=epochs,
    )
    with warnings.catch_warnings():
        # The features are in memory or mapped: worker processes would only add copies.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(task, batches(part, batch, torch.Generator().manual_seed(seed)), batches(held, batch))
    number = task.best()
    chosen = {**task.settings[number], "held_out_loss": float(task.held_out[number]), "heads": len(task.settings)}
    return task.heads[number].cpu(), chosen
