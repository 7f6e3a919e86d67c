"""Parameter groups, schedules, and the optimiser that a config names.

A schedule is a pure function ``(step, total) -> value``. The first optimiser step is step 1, so that a warm-up never
spends an update on a rate of zero (the convention of I-JEPA and V-JEPA).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from jepa.errors import InputError, check_choice

Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class Linear:
    """From ``start`` at step 0 to ``end`` at ``total``, in a straight line: the EMA momentum of I-JEPA and V-JEPA."""

    start: float
    end: float

    def __call__(self, step: int, total: int) -> float:
        return self.start + (self.end - self.start) * min(step / total, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From ``start`` at step 0 to ``end`` at ``total`` along half a cosine: the weight decay of I-JEPA and V-JEPA."""

    start: float
    end: float

    def __call__(self, step: int, total: int) -> float:
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * min(step / total, 1.0)))


@dataclass(frozen=True)
class Warmup:
    """Linear from ``start`` to where ``after`` starts over the first ``steps``, then ``after`` over the others."""

    start: float
    after: Linear | Cosine
    steps: int

    def __call__(self, step: int, total: int) -> float:
        if step < self.steps:
            return Linear(self.start, self.after.start)(step, self.steps)
        return self.after(step - self.steps, max(total - self.steps, 1))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: ``decay``, and ``no_decay`` for biases and everything below 2-D."""
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim <= 1 or name.endswith("bias")
            groups["no_decay" if spared else "decay"].append(parameter)
    decay = {"decay": weight_decay, "no_decay": 0.0}
    return [{"name": name, "params": found, "weight_decay": decay[name]} for name, found in groups.items() if found]


class ScheduledGroups(LRScheduler):
    """Sets the learning rate of every group, and the weight decay of the group ``decay``, at every step.

    Its state is two counters and plain numbers; the schedules themselves come from the config.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rate: Schedule, decay: Schedule, total: int) -> None:
        self.rate, self.decay, self.total = rate, decay, total
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [self.rate(self.last_epoch + 1, self.total) for _ in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if group["name"] == "decay":
                group["weight_decay"] = self.decay(self.last_epoch + 1, self.total)

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "_last_lr": self._last_lr}


class Optimizer:
    """AdamW with a linear warm-up, a schedule of the learning rate after it, and one of the weight decay, per step.

    Gradients are clipped by the trainer (``trainer.gradient_clip_val``). With a ``horizon`` h the schedules are those
    of a training h times as long, of which the last part is not run: V-JEPA's 1.25 stops after four fifths, at a
    rate well above ``final``. The warm-up is not stretched.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled weight decay at the start; biases and one-dimensional parameters have none.
        final_weight_decay: weight decay at the end of the horizon; None keeps ``weight_decay``.
        betas: decay rates of AdamW's two moments.
        eps: added to the root of AdamW's second moment.
        warmup: fraction of the training over which the learning rate rises.
        warmup_steps: optimiser steps over which it rises, in place of the fraction.
        start: learning rate at the beginning of the warm-up, as a fraction of ``lr``.
        shape: of the learning rate after the warm-up: half a "cosine" or a "linear" decay to ``final``, or "constant".
        final: learning rate at the end of the horizon, as a fraction of ``lr``.
        horizon: length of the schedules over the length of the training, 1 or more.
        fused: update all parameters in one kernel, several times as fast; with 16-mixed, which scales the gradients,
            nothing can be clipped with it.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        final_weight_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup: float = 0.05,
        warmup_steps: int | None = None,
        start: float = 0.0,
        shape: Literal["cosine", "constant", "linear"] = "cosine",
        final: float = 0.0,
        horizon: float = 1.0,
        fused: bool = True,
    ) -> None:
        if not (lr > 0 and eps > 0 and 0 <= warmup <= 1 and weight_decay >= 0):
            raise InputError(
                f"Optimizer(lr={lr}, eps={eps}, warmup={warmup}, weight_decay={weight_decay}): expected a positive "
                "rate and eps, a fraction and a decay of zero or more; change the one that is not"
            )
        rates = {"start": start, "final": final, "final_weight_decay": final_weight_decay or 0.0}
        if least := next((name for name, value in rates.items() if not 0 <= value < math.inf), None):
            raise InputError(f"Optimizer({least}={rates[least]}): expected a number of zero or more; change it")
        if not all(0 <= beta < 1 for beta in betas) or len(betas) != 2:
            raise InputError(f"Optimizer(betas={tuple(betas)}): expected two numbers of 0 to below 1; change them")
        if not 1 <= horizon < math.inf or (warmup_steps is not None and warmup_steps < 0):
            raise InputError(
                f"Optimizer(horizon={horizon}, warmup_steps={warmup_steps}): expected 1 or more, and steps of zero or "
                "more; change the one that is not"
            )
        falls = check_choice("Optimizer.shape", shape, ("cosine", "constant", "linear")) != "constant"
        if final and not falls:
            raise InputError(f"Optimizer(shape='constant', final={final}): expected no final rate; drop it")
        self.lr, self.betas, self.eps, self.fused = lr, tuple(betas), eps, fused
        self.warmup, self.warmup_steps, self.start, self.horizon = warmup, warmup_steps, start, horizon
        self.after = {"cosine": Cosine, "linear": Linear}[shape](lr, final * lr) if falls else Linear(lr, lr)
        self.decay = Cosine(weight_decay, weight_decay if final_weight_decay is None else final_weight_decay)

    def rate(self, total_steps: int) -> Warmup:
        """The learning rate of a training of ``total_steps``, to be called with its horizon as the total."""
        warm = int(self.warmup * total_steps + 1e-6) if self.warmup_steps is None else self.warmup_steps
        return Warmup(self.start * self.lr, self.after, warm)

    def build(self, module: nn.Module, total_steps: float) -> dict[str, Any]:
        """What ``LightningModule.configure_optimizers`` returns, for the trainable parameters of ``module``.

        Args:
            module: whose parameters are optimised.
            total_steps: optimiser steps of the whole training (``trainer.estimated_stepping_batches``).
        """
        if not 0 < total_steps < math.inf:
            raise InputError(
                f"the schedules were given a training of {total_steps} steps; expected a finite number: "
                "set trainer.max_steps or trainer.max_epochs"
            )
        groups = parameter_groups(module, self.decay.start)
        if not groups:
            raise InputError(f"{type(module).__name__} has no trainable parameter; unfreeze one or do not fit it")
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused)
        horizon = int(self.horizon * total_steps)
        scheduler = ScheduledGroups(optimizer, self.rate(int(total_steps)), self.decay, horizon)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
