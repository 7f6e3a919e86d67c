"""A world model whose latents also say where the robot is: DINO-WM (Zhou et al. 2024) and JEPA-WM (Terver et al. 2025).

Beside every patch stand the same few channels, an embedding of proprioception. The predictor forecasts them with the
rest, so that a cost can compare the forecast with the goal's, on those channels alone (``GoalLatent.channels``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.world import WorldModel
from jepa.schema import Sample, Specs


def felt(proprio: Tensor | None) -> Tensor:
    """The proprioception of a sample, which must be there."""
    if proprio is None:
        raise InputError("this world model needs proprio beside the video; use episodes that record it")
    return proprio


def standardise(proprio: Tensor, specs: Specs) -> Tensor:
    """Raw proprioception [...,P] to zero mean and unit standard deviation over the training episodes."""
    seen = specs.observation
    mean, std = (torch.tensor(values, device=proprio.device) for values in (seen.proprio_mean, seen.proprio_std))
    return (proprio - mean) / std


class ProprioWorld(WorldModel):
    """A world model of latents z [B,T,N,D+E]: the encoder's D channels, then E of proprioception, equal in all tokens.

    E is what the predictor's ``dim`` has above the encoder's. The embedding is linear and learned; as published, the
    targets of its channels carry no gradient. The encoder's channels are those of the target.

    Args:
        encoder: video [B,T,C,H,W] to latents [B,T,N,D].
        predictor: latents of D+E channels and actions to forecasts.
        target: what the forecasts of the encoder's channels are compared with in training.
        rollout_steps: K, how many steps the model is unrolled on its own forecasts in training; the context is the T-K
            frames before. 0 for none.
        forced: also forecast every step from real latents (teacher forcing).
    """

    embed: nn.Linear

    def _check_sizes(self) -> None:
        if self.predictor.tokens != self.tokens or self.predictor.dim <= self.encoder.dim:
            raise InputError(
                f"the encoder makes {self.tokens} tokens of {self.encoder.dim} dimensions, but the predictor was given "
                f"tokens={self.predictor.tokens} and dim={self.predictor.dim}; set its tokens as the encoder's, and "
                f"dim to {self.encoder.dim} and the channels of proprioception, e.g. {self.encoder.dim + 10}"
            )

    def _bind_predictor(self) -> None:
        super()._bind_predictor()
        width = len(self.specs.observation.proprio_mean)
        if not width:
            raise InputError("this world model needs proprio, but the data has none; use episodes that record it")
        self.embed = nn.Linear(width, self.predictor.dim - self.encoder.dim)

    def encode(self, sample: Sample) -> Tensor:
        """video [B,T,C,H,W] and proprio [B,T,P] -> z [B,T,N,D+E]"""
        z = self._look(sample)
        pose = self.embed(standardise(felt(sample.proprio), self.specs)).unsqueeze(2)
        return torch.cat([z, pose.expand(-1, -1, z.shape[2], -1)], dim=-1)

    def targets(self, sample: Sample, z: Tensor) -> Tensor:
        seen, pose = z.split([self.encoder.dim, z.shape[-1] - self.encoder.dim], dim=-1)
        return torch.cat([self.target(self.encoder, sample.video, seen), pose.detach()], dim=-1)
