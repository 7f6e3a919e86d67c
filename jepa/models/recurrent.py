"""A predictor with nothing to remember but the latent itself: the GRU of PLDM and EB-JEPA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from jepa.models.layers import layer_norm
from jepa.models.predictors import Predictor


@dataclass
class LatentCache:
    """All that a recurrent predictor knows of the past."""

    pending: Tensor  # [B,N,D], waits for its action

    def expand(self, copies: int) -> LatentCache:
        """Row b becomes rows b*copies ... (b+1)*copies-1: one past, many candidate futures."""
        return LatentCache(self.pending.repeat_interleave(copies, dim=0))


class RecurrentPredictor(Predictor):
    """One gated recurrent unit (Cho et al. 2014): the latent is the hidden state, the action is the input.

    A forecast depends on one latent and one action, so that ``begin`` and ``step`` give the numbers of ``forward``
    whatever the past was. Several tokens of a frame are stepped alike and do not see each other.

    Args:
        dim: D, of the latents that come in and go out.
        tokens: N, tokens per frame.
        residual: the unit forecasts the change of the latent (PLDM) instead of the next one (EB-JEPA).
        norm: end with a layer norm without parameters; set it as on the target's side.
    """

    window = 1

    def __init__(self, dim: int = 512, tokens: int = 1, residual: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.dim, self.tokens, self.residual, self.norm = dim, tokens, residual, norm
        self.cell: nn.GRUCell | None = None

    def bind(self, action_width: int) -> None:
        self.cell = nn.GRUCell(action_width, self.dim)

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        assert self.cell is not None, "RecurrentPredictor.bind was not called"
        given = action.unsqueeze(2).expand(-1, -1, z.shape[2], -1)
        p = self.cell(given.flatten(0, 2), z.flatten(0, 2)).view(z.shape)
        p = z + p if self.residual else p
        return layer_norm(p) if self.norm else p

    def begin(self, z: Tensor, action: Tensor) -> LatentCache:
        steps = z.shape[1]
        assert action.shape[1] == steps - 1, f"{steps} latents want {steps - 1} actions between them: {action.shape}"
        return LatentCache(z[:, -1])

    def step(self, cache: LatentCache, action: Tensor) -> tuple[Tensor, LatentCache]:
        z = self.forward(cache.pending.unsqueeze(1), action.unsqueeze(1)).squeeze(1)
        return z, LatentCache(z)
