"""What every pretraining shares: the losses, the schedules, the target that follows, the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from jepa.checkpoints.load import describe
from jepa.errors import InputError
from jepa.models.masked import MaskedJEPA
from jepa.models.world import WorldModel
from jepa.objectives.base import Objective
from jepa.optim import Optimizer
from jepa.schema import Prediction, Specs
from jepa.tasks.start import check_weights


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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["jepa"] = describe(self.world, self.hparams["world"])
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self.state_dict(), checkpoint["state_dict"], "the checkpoint")
        # what the weights were trained with counts, whatever the statistics of a dataset that has grown since
        self.world.specs = Specs.from_dict(checkpoint["jepa"]["specs"])
        torch.set_rng_state(checkpoint["random_state"])
