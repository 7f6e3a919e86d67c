"""Probes while the encoder still learns: is the representation good, not only the loss low?"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from jepa.callbacks.publish import publish
from jepa.data.module import EpisodeData
from jepa.data.video_module import VideoData
from jepa.errors import InputError, check_choice
from jepa.schema import Sample
from jepa.tasks import latents
from probes.base import Probe
from probes.linear import LinearProbe
from probes.neighbours import NeighbourProbe
from probes.score import headline
from probes.shard import PARTS, Part, Shard, labelled

log = logging.getLogger(__name__)


class OnlineProbe(Callback):
    """Probes the encoder on a small labelled shard, before the first step and every so many steps, and logs

    * ``probe/linear``: a linear probe in closed form,
    * ``probe/knn``: k nearest neighbours by cosine,

    as accuracy, or as R2 (the mean over the targets), of half of the shard's episodes (or videos) that the probes were
    not fitted on. Latents are averaged over the tokens of a frame or clip. ``probe/seconds`` is what it took.

    The training is left as it is: the encoder is read in evaluation mode without gradients, and the random generators
    are put back, so that losses and weights are, bit for bit, those without this callback. Every process encodes the
    shard (a sharded model needs all of them); the numbers are those of process zero. With
    ``ModelCheckpoint(monitor="probe/linear", mode="max", every_n_train_steps=...)`` of the same interval, or a multiple
    of it, the best checkpoint by probe is kept: see configs/trainer/probed.yaml.

    Args:
        target: what is read out: comma-separated names of dimensions of the state (the labels of videos), or state or
            proprio.
        classes: number of classes where the target is a class number; 0 means regression.
        every: optimiser steps between two probes.
        data: the labelled data; that of the fit if null.
        part: of the split of the data, from which the shard is taken: train, val or test.
        limit: frames or clips of the shard, at most, spread evenly.
        batch: frames or clips that are encoded together.
        k: neighbours.
        temperature: of the neighbours' weights.
        ridge: penalty of the linear probe.
        which: the encoder of a masked model that is read, "context" or "target"; the one that it is configured to read
            if null. Early on the target, an average over the training, lags behind.
        seed: of the halves.
    """

    def __init__(
        self,
        target: str,
        classes: int = 0,
        every: int = 100,
        data: EpisodeData | VideoData | None = None,
        part: Part = "train",
        limit: int = 1000,
        batch: int = 64,
        k: int = 20,
        temperature: float = 0.07,
        ridge: float = 1e-3,
        which: Literal["context", "target"] | None = None,
        seed: int = 0,
    ) -> None:
        if min(every, batch) < 1 or limit < 4:
            raise InputError(f"OnlineProbe(every={every}, batch={batch}, limit={limit}): expected at least 1, 1 and 4")
        check_choice("part", part, PARTS)
        self.target, self.classes, self.every, self.data, self.part = target, classes, every, data, part
        self.limit, self.batch, self.seed, self.which = limit, batch, seed, which
        self.k, self.temperature, self.ridge = k, temperature, ridge
        self._probes()  # checks their settings now, not at the first step
        self._shard: Shard | None = None
        self._known = np.zeros(0, dtype=bool)  # examples that the probes are fitted on
        self._step = -1  # of the last probe

    def _probes(self) -> dict[str, Probe]:
        return {
            "linear": LinearProbe(self.ridge, classes=self.classes),
            "knn": NeighbourProbe(self.k, self.temperature, classes=self.classes),
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        world = getattr(pl_module, "world", None)
        if not callable(getattr(world, "encode", None)):
            raise InputError(f"OnlineProbe was given a {type(pl_module).__name__} without world.encode: drop it")
        if self.which is not None and not hasattr(world, "reads"):
            raise InputError(f"which={self.which}, but a {type(world).__name__} has one encoder: leave which out")
        with isolate_rng():
            data = trainer.datamodule if self.data is None else self.data
            self._shard = labelled(data, self.part, self.target, self.classes, self.limit)
            self._known = self._halves(self._shard)
        frame = self._shard.frame
        remedy = "set the size of the probe's data as the encoder's"
        latents.check_frames(world, frame.channels, frame.height, frame.width, remedy)

    def _halves(self, shard: Shard) -> np.ndarray:
        """Which examples the probes learn from: whole episodes, half of them."""
        numbers = np.unique(shard.episode)
        if len(numbers) < 2:
            raise InputError(f"the probe's data has 1 episode in its {self.part} part: expected at least 2")
        some = np.random.default_rng(self.seed).permutation(numbers)[: len(numbers) // 2]
        known = np.isin(shard.episode, some)
        if known.sum() < self.k:
            raise InputError(f"k={self.k} neighbours among {known.sum()} labelled examples: lower k or raise limit")
        for half in (known, ~known):
            y = shard.y[torch.from_numpy(half)]
            if (y == y[0]).all(0).any() and not (self.classes and half is not known):
                raise InputError(f"target {self.target} is constant over half of the shard: raise limit, or drop it")
        return known

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0:  # not on_train_start: what a training starts from is loaded after the callbacks'
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self._step:  # one of several batches whose gradients are summed
            return
        self._step, start = trainer.global_step, time.perf_counter()
        with isolate_rng(), torch.no_grad(), evaluating(pl_module.world, self.which):
            with trainer.precision_plugin.forward_context():
                z, numbers = self._latents(pl_module)
            scores = self._scores(z, numbers) if trainer.is_global_zero else {}
        scores = trainer.strategy.broadcast(scores)
        publish(trainer, {f"probe/{name}": value for name, value in scores.items()})
        if trainer.is_global_zero:
            publish(trainer, {"probe/seconds": time.perf_counter() - start})
            told = ", ".join(f"probe/{name} {value:.4f}" for name, value in scores.items())
            log.info("step %d: %s", self._step, told)

    def _latents(self, pl_module: LightningModule) -> tuple[Tensor, list[int]]:
        """Mean latents [n,1,1,D] of the shard, and the numbers of the examples that they are of."""
        parts, numbers = [], []
        for found, sample in self._shard.batches(self.batch):
            seen = Sample(video=sample.video, proprio=sample.proprio).to(pl_module.device)
            parts.append(pl_module.world.encode(seen).float().mean((1, 2), keepdim=True).cpu())
            numbers += found
        if not parts:
            raise InputError("none of the files of the probe's shard can be read: check them, or drop OnlineProbe")
        return torch.cat(parts), numbers

    def _scores(self, z: Tensor, numbers: list[int]) -> dict[str, float]:
        if not z.isfinite().all():
            log.warning("step %d: the latents hold NaN or infinity, the probes have no value", self._step)
            return {name: float("nan") for name in self._probes()}
        y, known = self._shard.y[numbers], torch.from_numpy(self._known[numbers])
        scores = {}
        for name, probe in self._probes().items():
            probe.build(z[known], y[known])
            probe.fit(z[known], y[known])
            scores[name] = headline(probe.eval()(z[~known]), y[~known])
        return scores


@contextmanager
def evaluating(world: nn.Module, which: str | None = None) -> Iterator[None]:
    """Within, a model is in evaluation mode (and reads through an encoder); then each part is again as it was."""
    training, reads = {module: module.training for module in world.modules()}, getattr(world, "reads", None)
    world.eval()
    if which is not None:
        world.reads = which
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        if which is not None:
            world.reads = reads
