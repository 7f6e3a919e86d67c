"""What every pretraining shares: the losses, the schedules, the target that follows, the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from jepa.checkpoints.load import describe
from jepa.data.order import regroup
from jepa.errors import InputError
from jepa.models.masked import MaskedJEPA
from jepa.models.world import WorldModel
from jepa.objectives.base import Objective
from jepa.optim import Optimizer
from jepa.schema import Prediction, Specs
from jepa.tasks.start import check_weights

log = logging.getLogger(__name__)


class Training(LightningModule):
    """Train a model on objectives that score its predictions; a subclass says what one step predicts.

    Args:
        world: the encoder, predictor and target.
        objectives: what is minimised, by name: the weighted sum of all.
        optimizer: the optimiser and its schedule.
    """

    def __init__(
        self, world: WorldModel | MaskedJEPA, objectives: Mapping[str, Objective], optimizer: Optimizer
    ) -> None:
        super().__init__()
        if not objectives:
            name = type(self).__name__
            raise InputError(f"{name} was given no objectives; give at least one, e.g. jepa.objectives.Regression")
        self.save_hyperparameters()
        self.world, self.objectives, self.optimizer = world, nn.ModuleDict(objectives), optimizer

    def setup(self, stage: str) -> None:
        if hasattr(self.world, "specs"):
            return
        specs = self.trainer.datamodule.specs
        self.world.bind(specs)
        # latents of world models may have channels beside the encoder's
        width = self.world.predictor.dim if isinstance(self.world, WorldModel) else self.world.encoder.dim
        for objective in self.objectives.values():
            objective.bind(specs, width)

    clip: float | None = None  # largest norm of gradients, where a subclass clips them itself

    def on_fit_start(self) -> None:
        clip = self.clip or self.trainer.gradient_clip_val
        if clip and self.trainer.precision == "16-mixed" and self.optimizer.fused:
            raise InputError(
                f"gradients were to be clipped at {clip} while they are still scaled, as a fused optimiser unscales "
                "them later; set trainer.precision to bf16-mixed, or fused of the optimizer to false"
            )
        batches = self.trainer.accumulate_grad_batches
        if batches > 1 and (joint := [name for name, objective in self.objectives.items() if objective.joint]):
            log.warning(
                "%s: a statistic of each batch, so that the accumulated gradients of %d batches are not those of one "
                "batch as large",
                ", ".join(joint),
                batches,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for objective in self.objectives.values():
            objective.begin_step(self.trainer.global_step)

    @property
    def progress(self) -> float:
        """From 0 to 1 over the optimiser steps of the training."""
        return min(1.0, self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches))

    def _losses(self, predictions: Iterable[Prediction]) -> dict[str, Tensor]:
        """Every objective by name, unweighted: the mean over the predictions."""
        rows = [{name: o(prediction) for name, o in self.objectives.items()} for prediction in predictions]
        return {name: sum(row[name] for row in rows) / len(rows) for name in self.objectives}

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        return sum(self.objectives[name].weight_at(self.progress) * value for name, value in losses.items())

    def _report(self, losses: Mapping[str, Tensor], stage: str, samples: int) -> None:
        """Log the losses, the mean over all processes, without waiting for the device."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        if stage == "train" and self.trainer.world_size > 1:  # Lightning's own way waits at a barrier
            torch.distributed.all_reduce(values)
            values /= self.trainer.world_size
        named = {f"{stage}/{name}": value for name, value in zip(losses, values.unbind())}
        self.log_dict(named, batch_size=samples, sync_dist=stage != "train")

    def configure_optimizers(self) -> dict[str, Any]:
        return self.optimizer.build(self, self.trainer.estimated_stepping_batches)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.world.target.update(self.world.encoder, self.progress)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, but also for a fused optimiser under bf16-mixed: only scaled gradients forbid that."""
        if not gradient_clip_val:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        by_value = gradient_clip_algorithm == "value"
        clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
        clip(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite()
        checkpoint["jepa"] = describe(self.world, self.hparams["world"])
        checkpoint["random_state"] = torch.get_rng_state()

    def _check_finite(self) -> None:
        """InputError where a weight is not finite: such a checkpoint would take the place of one that is of use."""
        shards = (value.to_local() if isinstance(value, DTensor) else value for value in self.world.parameters())
        finite = all(bool(torch.isfinite(value).all()) for value in shards)
        if not self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise InputError(
                f"weights are not finite after step {self.trainer.global_step}, and are not saved; the last checkpoint "
                "is as it was: lower the learning rate, or skip such steps with jepa.callbacks.LossSpikeGuard"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self.state_dict(), checkpoint["state_dict"], "the checkpoint")
        if self.trainer.training and "loops" in checkpoint:  # weights alone have none, and Lightning says so
            regroup(checkpoint["loops"]["fit_loop"], self.trainer.datamodule, self.trainer.world_size)
        # what the weights were trained with counts, whatever the statistics of a dataset that has grown since
        self.world.specs = Specs.from_dict(checkpoint["jepa"]["specs"])
        torch.set_rng_state(checkpoint["random_state"])
