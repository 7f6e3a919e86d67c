"""Pretraining of world models: forecast latents, score the forecast, follow with the target."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa.models.world import WorldModel
from jepa.objectives.base import Objective
from jepa.optim import Optimizer
from jepa.schema import Sample
from jepa.tasks.training import Training


class Pretrain(Training):
    """Train a world model on windows of episodes.

    Args:
        world: the encoder, predictor and target.
        objectives: what is minimised, by name: the weighted sum of all.
        optimizer: the optimiser and its schedule.
    """

    def __init__(self, world: WorldModel, objectives: dict[str, Objective], optimizer: Optimizer = Optimizer()) -> None:
        super().__init__(world, objectives, optimizer)

    def _score(self, sample: Sample, stage: str) -> dict[str, Any]:
        """Log every objective unweighted; the weighted sum, and for callbacks the prediction without its graph."""
        prediction = self.world(sample)
        losses = self._losses([prediction])
        loss = self._total(losses)
        self._report(losses | {"loss": loss}, stage, len(prediction.z))
        return {"loss": loss, "prediction": prediction.detach()}

    def training_step(self, sample: Sample, index: int) -> dict[str, Any]:
        return self._score(sample, "train")

    def validation_step(self, sample: Sample, index: int) -> dict[str, Any]:
        return self._score(sample, "val")

    def test_step(self, sample: Sample, index: int) -> dict[str, Any]:
        return self._score(sample, "test")

    def predict_step(self, sample: Sample, index: int) -> Tensor:
        return self.world.encode(sample)
