"""Guards a training against steps whose loss is far off."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from jepa.errors import InputError

log = logging.getLogger(__name__)


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
