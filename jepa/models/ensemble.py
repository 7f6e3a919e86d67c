"""Several predictors behind one encoder: where they disagree, the data said little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.predictors import Predictor
from jepa.models.targets import Target
from jepa.models.world import WorldModel


class EnsembleWorld(WorldModel):
    """A world model of E predictors that begin differently and learn from rows of their own, as deep ensembles do.

    In training, every row of a batch goes to one member, so that E members cost the time of one. Otherwise ``predict``
    and ``rollout`` give the mean over the members, each of which is fed with its own forecasts; ``rollouts`` gives
    every member's. :class:`jepa.planning.Risk` and :class:`jepa.planning.Disagreement` make costs of those.

    Args:
        encoder: video [B,T,C,H,W] to latents [B,T,N,D].
        members: the predictors, at least two of equal ``dim`` and ``tokens``.
        target: what the forecasts are compared with in training.
        rollout_steps: K, how many steps the model is unrolled on its own forecasts in training; the context is the T-K
            frames before. 0 for none.
        forced: also forecast every step from real latents (teacher forcing).
    """

    def __init__(
        self, encoder: Encoder, members: list[Predictor], target: Target, rollout_steps: int = 0, forced: bool = True
    ) -> None:
        if len(members) < 2 or len({id(member) for member in members}) < len(members):
            raise InputError(f"EnsembleWorld was given {len(members)} members; expected two or more predictors")
        if len(shapes := {(member.dim, member.tokens) for member in members}) > 1:
            raise InputError(f"the members have different (dim, tokens): {sorted(shapes)}; give all the same")
        super().__init__(encoder, members[0], target, rollout_steps, forced)
        self.others = nn.ModuleList(members[1:])

    @property
    def members(self) -> list[Predictor]:
        return [self.predictor, *self.others]

    def _bind_predictor(self) -> None:
        for member in self.members:
            member.bind(self.specs.action.width)

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        """z [B,T,N,D], raw actions [B,T,A] -> p [B,T,N,D]: the mean of the members, in training of one per row."""
        action = self.specs.action.normalise(action)
        if not self.training:
            return torch.stack([member(z, action) for member in self.members]).mean(0)
        rows = self._rows(len(z))
        return torch.cat([member(z[own], action[own]) for member, own in zip(self.members, rows)])

    def rollout(self, z: Tensor, action: Tensor, past: Tensor | None = None) -> Tensor:
        """As that of a WorldModel: the mean of the members, in training of one per row."""
        if not self.training:
            return self.rollouts(z, action, past).mean(0)
        parts = [
            self._imagine(member, z[own], action[own], None if past is None else past[own])
            for member, own in zip(self.members, self._rows(len(z)))
        ]
        return torch.cat(parts)

    def rollouts(self, z: Tensor, action: Tensor, past: Tensor | None = None) -> Tensor:
        """z [B,T,N,D], raw plans [B,S,H,A], past actions [B,T-1,A] -> the forecasts of every member [E,B,S,H,N,D]."""
        return torch.stack([self._imagine(member, z, action, past) for member in self.members])

    def _rows(self, batch: int) -> list[slice]:
        """The rows of a batch that each member learns from."""
        count = len(self.members)
        if batch < count:
            raise InputError(
                f"a batch of {batch} cannot train {count} members on rows of their own; use batches of {count} or more"
            )
        edges = [batch * member // count for member in range(count + 1)]
        return [slice(*edge) for edge in zip(edges, edges[1:])]
