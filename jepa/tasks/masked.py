"""Pretraining of masked models: forecast the latents of what is hidden in clips of video and in images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.masks import Masks
from jepa.models.masked import MaskedJEPA
from jepa.objectives.base import Objective
from jepa.optim import Optimizer
from jepa.schema import Mask, Sample
from jepa.tasks.sharding import shard
from jepa.tasks.start import start_from
from jepa.tasks.training import Training


@dataclass
class Hidden:
    """Clips of one length, and what of them is to be forecast from what: a mask of each generator."""

    sample: Sample
    masks: list[Mask]
    count: int  # clips that count in the loss: all, or none

    def to(self, device: torch.device | str) -> Hidden:
        return Hidden(self.sample.to(device), [mask.to(device) for mask in self.masks], self.count)


class MaskedPretrain(Training):
    """Train a masked model (I-JEPA, V-JEPA, V-JEPA 2 and 2.1) on clips of one or several lengths.

    A batch is a list of samples, one for each length, their number of frames; the data module says in ``lengths`` which
    may come. A length counts as much as it has samples, and within it the generators count alike. Masks are drawn on
    the CPU from (seed of the masks, ``Sample.key``).

    Args:
        world: the encoder, predictor and target.
        masks: what is hidden.
        objectives: what is minimised, by name: the weighted sum of all.
        optimizer: the optimiser and its schedule.
        image_masks: what is hidden in clips of one frame; ``masks`` if null.
        clip: largest norm of the gradients of the encoder, and of those of the predictor; null leaves clipping to
            the trainer's ``gradient_clip_val``.
        clip_after: fraction of the training from which on ``clip`` applies (V-JEPA clips after the warm-up).
        compile: backend of torch.compile, e.g. inductor, worth its minutes on a GPU; null runs the model as it is.
        start: a checkpoint of another run whose weights, and the optimiser's moments where they fit, this one begins
            with; its schedules begin anew (the cooldown of V-JEPA 2).
    """

    def __init__(
        self,
        world: MaskedJEPA,
        masks: Masks,
        objectives: dict[str, Objective],
        optimizer: Optimizer = Optimizer(),
        image_masks: Masks | None = None,
        clip: float | None = None,
        clip_after: float = 0.0,
        compile: str | None = None,
        start: str | None = None,
    ) -> None:
        if compile is not None:
            check_choice("compile", compile, torch._dynamo.list_backends(exclude_tags=()))
        if (clip is not None and clip <= 0) or not 0 <= clip_after <= 1:
            raise InputError(
                f"MaskedPretrain(clip={clip}, clip_after={clip_after}): expected a norm above zero, or null, and a "
                "fraction of the training; change the one that is not"
            )
        super().__init__(world, objectives, optimizer)
        self.masks, self.image_masks = masks, image_masks
        self.clip, self.clip_after, self.start, self.backend = clip, clip_after, start, compile

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard(self.world, self.device_mesh)
        if self.backend is not None:
            self.world.compile(backend=self.backend)  # in place: the names in a checkpoint stay as they are

    def on_train_start(self) -> None:
        # here, not before: a fit that resumes, as Lightning knows by now, has all of it in its own checkpoint
        if self.start is not None and self.trainer.ckpt_path is None:
            start_from(self.start, self.world, self.trainer.optimizers[0])

    def on_before_batch_transfer(self, batch: list[Sample], dataloader_idx: int) -> list[Hidden] | list[Sample]:
        if self.trainer.predicting:
            return batch
        groups = [Hidden(sample, self._draw(sample), len(sample.video)) for sample in batch]
        for sample in self._absent(batch):
            groups.append(Hidden(sample, self._draw(sample), 0))
        return sorted(groups, key=lambda group: group.sample.video.shape[1])

    def _absent(self, batch: list[Sample]) -> list[Sample]:
        """A black clip of every length that other processes may have and this one has not.

        Parameters are gathered, and statistics summed, in every pass: all processes must make the same passes.
        """
        if not self.trainer.training or self.trainer.world_size == 1:
            return []
        first = batch[0]
        missing = {*self.trainer.datamodule.lengths} - {sample.video.shape[1] for sample in batch}
        shape = first.video.shape[2:]
        return [Sample(video=first.video.new_zeros(1, n, *shape), key=first.key[:1]) for n in sorted(missing)]

    def _draw(self, sample: Sample) -> list[Mask]:
        if sample.key is None:
            raise InputError("the samples have no key to draw masks from; give clips of jepa.data.video_module")
        masks = self.image_masks if sample.video.shape[1] == 1 and self.image_masks else self.masks
        return masks(sample.key, self.world.encoder.clip_grid(sample.video))

    def _score(self, batch: list[Hidden], stage: str) -> dict[str, Any]:
        """Log every objective unweighted; their weighted sum, and for callbacks the first prediction detached."""
        losses: dict[str, Tensor] = {}
        first, total = None, sum(group.count for group in batch)
        for group in batch:
            predictions = self.world(group.sample.video, group.masks)
            if group.count == 0:  # statistics of the joint batch have no sample of it
                predictions = [replace(prediction, z=prediction.z[:0]) for prediction in predictions]
            first = first or predictions[0].detach()
            share = group.count / total
            for name, value in self._losses(predictions).items():
                losses[name] = losses.get(name, 0) + share * value
        loss = self._total(losses)
        self._report(losses | {"loss": loss}, stage, total)
        return {"loss": loss, "prediction": first}

    def training_step(self, batch: list[Hidden], index: int) -> dict[str, Any]:
        return self._score(batch, "train")

    def validation_step(self, batch: list[Hidden], index: int) -> dict[str, Any]:
        return self._score(batch, "val")

    def test_step(self, batch: list[Hidden], index: int) -> dict[str, Any]:
        return self._score(batch, "test")

    def predict_step(self, batch: list[Sample], index: int) -> list[Tensor]:
        """Latents [B,T,N,D] of the clips of each length."""
        return [self.world.encode(sample) for sample in batch]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **trainers: Any) -> None:
        """Clip the encoder's and the predictor's gradients, each by its own norm, as published for V-JEPA."""
        if self.clip is None:
            super().configure_gradient_clipping(optimizer, **trainers)
        elif self.progress >= self.clip_after:
            for part in (self.world.encoder, self.world.predictor):
                torch.nn.utils.clip_grad_norm_(part.parameters(), self.clip)
