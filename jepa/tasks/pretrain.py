"""Pretraining: forecast latents, score the forecast, follow with the target."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from jepa.checkpoints.load import describe
from jepa.errors import InputError
from jepa.models.world import WorldModel
from jepa.objectives.base import Objective
from jepa.optim import Optimizer
from jepa.schema import Sample, Specs


class Pretrain(LightningModule):
    """Train a world model on windows of episodes.

    Args:
        world: the encoder, predictor and target.
        objectives: what is minimised, by name: the weighted sum of all.
        optimizer: the optimiser and its schedule.
    """

    def __init__(self, world: WorldModel, objectives: dict[str, Objective], optimizer: Optimizer = Optimizer()) -> None:
        super().__init__()
        if not objectives:
            raise InputError("Pretrain was given no objectives; give at least one, e.g. jepa.objectives.Regression")
        self.save_hyperparameters()
        self.world, self.objectives, self.optimizer = world, nn.ModuleDict(objectives), optimizer

    def setup(self, stage: str) -> None:
        if hasattr(self.world, "specs"):
            return
        specs = self.trainer.datamodule.specs
        self.world.bind(specs)
        for objective in self.objectives.values():
            objective.bind(specs, self.world.encoder.dim)

    @property
    def progress(self) -> float:
        """From 0 to 1 over the training."""
        return min(1.0, self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches))

    def _score(self, sample: Sample, stage: str) -> dict[str, Any]:
        """Log every objective unweighted; the weighted sum, and for callbacks the prediction without its graph."""
        prediction = self.world(sample)
        losses = {name: objective(prediction) for name, objective in self.objectives.items()}
        loss = sum(self.objectives[name].weight_at(self.progress) * value for name, value in losses.items())
        values = {f"{stage}/{name}": value.detach() for name, value in (losses | {"loss": loss}).items()}
        self.log_dict(values, batch_size=len(sample.video), sync_dist=stage != "train")
        return {"loss": loss, "prediction": prediction.detach()}

    def training_step(self, sample: Sample, index: int) -> dict[str, Any]:
        return self._score(sample, "train")

    def validation_step(self, sample: Sample, index: int) -> dict[str, Any]:
        return self._score(sample, "val")

    def test_step(self, sample: Sample, index: int) -> dict[str, Any]:
        return self._score(sample, "test")

    def predict_step(self, sample: Sample, index: int) -> Tensor:
        return self.world.encode(sample)

    def configure_optimizers(self) -> dict[str, Any]:
        return self.optimizer.build(self, self.trainer.estimated_stepping_batches)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.world.target.update(self.world.encoder, self.progress)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["jepa"] = describe(self.world, self.hparams["world"])
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_weights(checkpoint["state_dict"])
        # what the weights were trained with counts, whatever the statistics of a dataset that has grown since
        self.world.specs = Specs.from_dict(checkpoint["jepa"]["specs"])
        torch.set_rng_state(checkpoint["random_state"])

    def _check_weights(self, given: dict[str, Tensor]) -> None:
        states = (self.state_dict(), given)
        mine, theirs = ({name: list(value.shape) for name, value in state.items()} for state in states)
        if differ := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
            there, here = (state.get(differ[0], "missing") for state in (theirs, mine))
            raise InputError(
                f"the checkpoint is of another model: {differ[0]} is {there} there and {here} here, and "
                f"{len(differ) - 1} more differ; give the configuration that wrote it (config.yaml in its logs)"
            )
