"""A predictor that plans from fewer frames than it was trained on, as JEPA-WM is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.models.predictors import ActionPredictor


@dataclass
class Context:
    """The last frames and the actions between them; what lies before is forgotten, in every block."""

    latents: Tensor  # [B,L,N,D]; the newest waits for its action
    action: Tensor  # [B,L-1,A]

    def expand(self, copies: int) -> Context:
        """Row b becomes rows b*copies ... (b+1)*copies-1: one past, many candidate futures."""
        return Context(*(part.repeat_interleave(copies, dim=0) for part in (self.latents, self.action)))


class TruncatedPredictor(ActionPredictor):
    """Trained on whole windows, rolled out from the last ``context`` frames (Terver et al. 2025, who plan with 2).

    In :class:`jepa.models.predictors.ActionPredictor` a frame has seen, block by block, what lay before the window;
    keys and values keep that. Here every step computes the last frames anew, without what came before them:
    ``context`` * N tokens go through the blocks. While no more than ``context`` frames are known, both are one.

    Args:
        context: frames that a step of a rollout sees, at most ``window``.
        kwargs: those of :class:`jepa.models.predictors.ActionPredictor`.

    Raises:
        InputError: a context below 1 or beyond the window
    """

    def __init__(self, context: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 1 <= context <= self.window:
            raise InputError(
                f"TruncatedPredictor was given context={context}; expected 1 up to its window of {self.window}"
            )
        self.context = context

    def _last(self, latents: Tensor, action: Tensor) -> Context:
        first = max(0, latents.shape[1] - self.context)
        return Context(latents[:, first:], action[:, first:])

    def begin(self, z: Tensor, action: Tensor) -> Context:
        assert action.shape[1] == z.shape[1] - 1, f"{z.shape[1]} latents want one action fewer: {action.shape}"
        return self._last(z, action)

    def step(self, cache: Context, action: Tensor) -> tuple[Tensor, Context]:
        actions = torch.cat([cache.action, action.unsqueeze(1)], dim=1)
        z = self(cache.latents, actions)[:, -1:]
        return z[:, 0], self._last(torch.cat([cache.latents, z], dim=1), actions)
