"""The world model: encode frames, forecast latents given actions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.predictors import Predictor
from jepa.models.targets import Target
from jepa.schema import Prediction, Sample, Specs


class WorldModel(nn.Module):
    """An action-conditioned joint-embedding predictive model of P(z' | z, a); pixels are never decoded.

    Args:
        encoder: video [B,T,C,H,W] to latents [B,T,N,D].
        predictor: latents and actions to forecasts.
        target: what the forecasts are compared with in training.
        rollout_steps: K, how many steps the model is unrolled on its own forecasts in training; the context is the T-K
            frames before. 0 for none.
        forced: also forecast every step from real latents (teacher forcing).
    """

    specs: Specs

    def __init__(
        self, encoder: Encoder, predictor: Predictor, target: Target, rollout_steps: int = 0, forced: bool = True
    ) -> None:
        super().__init__()
        if not (forced or rollout_steps):
            raise InputError("the world model was given forced=false and rollout_steps=0: set at least one of them")
        self.encoder, self.predictor, self.target = encoder, predictor, target
        self.rollout_steps, self.forced = rollout_steps, forced
        self._check_sizes()
        target.bind(encoder)

    @property
    def tokens(self) -> int:
        """N"""
        return self.encoder.grid[0] * self.encoder.grid[1]

    def _check_sizes(self) -> None:
        if (self.encoder.dim, self.tokens) != (self.predictor.dim, self.predictor.tokens):
            raise InputError(
                f"the encoder makes {self.tokens} tokens of {self.encoder.dim} dimensions, but the predictor was given "
                f"tokens={self.predictor.tokens} and dim={self.predictor.dim}; set the predictor's as the encoder's"
            )

    def bind(self, specs: Specs) -> None:
        """Learn the action space and its statistics, once, before training or before weights are loaded."""
        if (specs.observation.height, specs.observation.width) != self.encoder.frame:
            height, width = self.encoder.frame
            raise InputError(
                f"the data has frames of {specs.observation.height}x{specs.observation.width} pixels, but the encoder "
                f"expects {height}x{width}; set the size of the data or of the encoder"
            )
        self.specs = specs
        self._bind_predictor()

    def _bind_predictor(self) -> None:
        self.predictor.bind(self.specs.action.width)

    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] -> z [B,T,N,D]"""
        return self._look(sample)

    def _look(self, sample: Sample) -> Tensor:
        """The encoder's latents [B,T,N,D]; those of a feature cache, where the sample has them."""
        return self.encoder(sample.video) if sample.latent is None else sample.latent

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        """z [B,T,N,D], raw actions [B,T,A] -> p [B,T,N,D], where p[:, t] forecasts z[:, t+1]."""
        return self.predictor(z, self.specs.action.normalise(action))

    def rollout(self, z: Tensor, action: Tensor, past: Tensor | None = None) -> Tensor:
        """z [B,T,N,D], raw plans [B,S,H,A], raw past actions [B,T-1,A] (None if T=1) -> forecasts [B,S,H,N,D]."""
        return self._imagine(self.predictor, z, action, past)

    def _imagine(self, predictor: Predictor, z: Tensor, action: Tensor, past: Tensor | None) -> Tensor:
        """As :meth:`rollout`, by one predictor of this width and number of tokens."""
        batch, plans, _, width = action.shape
        past = z.new_zeros(batch, 0, width) if past is None else self.specs.action.normalise(past)
        cache = predictor.begin(z, past).expand(plans)
        return self._unroll(predictor, cache, self.specs.action.normalise(action)).unflatten(0, (batch, plans))

    @staticmethod
    def _unroll(predictor: Predictor, cache: Any, *plans: Tensor) -> Tensor:
        """A cache of B*S rows, and what each of its steps is given, [B,S,H,...] -> forecasts [B*S,H,N,D]."""
        forecasts = []
        for given in zip(*(plan.flatten(0, 1).unbind(1) for plan in plans)):
            latent, cache = predictor.step(cache, *given)
            forecasts.append(latent)
        return torch.stack(forecasts, dim=1)

    def forward(self, sample: Sample) -> Prediction:
        """A window of T frames and T-1 raw actions -> the prediction that objectives score."""
        z = self.encode(sample)
        context = z.shape[1] - self.rollout_steps
        if context < 1:
            raise InputError(f"a rollout of {self.rollout_steps} steps needs more frames than data.frames={z.shape[1]}")
        prediction = Prediction(z, self.targets(sample, z), self.specs.action.normalise(sample.action))
        if self.forced:
            prediction.p = self._forced(z[:, :-1], sample)
        if self.rollout_steps:
            prediction.rollout = self._open_loop(z[:, :context], sample)
        return prediction

    def targets(self, sample: Sample, z: Tensor) -> Tensor:
        """What the forecasts are compared with, [B,T,N,D], beside the latents of the same window."""
        return self.target(self.encoder, sample.video, z)

    def _forced(self, z: Tensor, sample: Sample) -> Tensor:
        """All latents of a window but the last [B,T-1,N,D] -> what follows each, [B,T-1,N,D]."""
        return self.predict(z, sample.action)

    def _open_loop(self, z: Tensor, sample: Sample) -> Tensor:
        """The first latents of a window [B,T-K,N,D] -> the other K, forecast with the window's actions [B,K,N,D]."""
        past, future = sample.action[:, : z.shape[1] - 1], sample.action[:, z.shape[1] - 1 :]
        return self.rollout(z, future.unsqueeze(1), past).squeeze(1)
