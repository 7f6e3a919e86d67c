"""DINO-WM's predictor (Zhou et al. 2024, arXiv:2411.04983): every token carries the action in channels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.layers import Store
from jepa.models.windowed import WindowBlock, WindowedPredictor


class PlainBlock(WindowBlock):
    """Attention and a feed-forward layer, each with a norm before it: x [B,L,width] -> [B,L,width]."""

    def __init__(self, width: int, heads: int, head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self._build(width, heads, head, hidden, dropout)

    def forward(self, x: Tensor, order: Mapping[str, Any], store: Store | None = None, newest: int = 0) -> Tensor:
        y, x = x, x[:, -newest:]  # all, where newest is 0
        x = x + self._attend(y, x.shape[1], order, store)
        return x + self.mlp(x)


class PatchWindowPredictor(WindowedPredictor):
    """Patches of the last ``window`` frames beside an embedding of the action that follows them.

    The embedded action is joined to the channels of every patch, so that the transformer is ``dim`` +
    ``action_channels`` wide; of what it answers, ``dim`` channels are the forecast (the published one forecasts the
    action's as well, which neither its loss nor its rollout uses). Learned positions count the patches of a window.
    What a step costs is told by the base.

    Args:
        dim: D, of the latents that come in and go out; with proprioception among them, if there is any.
        tokens: N, patches per frame.
        action_channels: width of the embedded action.
        depth: number of blocks.
        heads: attention heads.
        head: width of a head.
        window: how many frames a forecast sees.
        hidden: width inside the feed-forward layers.
        dropout: fraction of activations that training drops inside the blocks.

    Raises:
        InputError: a window below 1, or a fraction outside [0,1)
    """

    def __init__(
        self,
        dim: int = 394,
        tokens: int = 196,
        action_channels: int = 10,
        depth: int = 6,
        heads: int = 16,
        head: int = 64,
        window: int = 3,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(window, tokens, action_channels, depth) < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"PatchWindowPredictor was given window={window}, tokens={tokens}, action_channels={action_channels}, "
                f"depth={depth}, dropout={dropout}; expected 1 or more of each and a fraction below 1"
            )
        self.dim, self.tokens, self.window, self.action_channels = dim, tokens, window, action_channels
        self.condition: nn.Linear | None = None
        width = dim + action_channels
        self.position = nn.Parameter(torch.randn(1, window * tokens, width))
        self.blocks = nn.ModuleList(PlainBlock(width, heads, head, hidden, dropout) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)

    def bind(self, action_width: int) -> None:
        self.condition = nn.Linear(action_width, self.action_channels)

    def _embed(self, latents: Tensor, conditions: Tensor, position: Tensor) -> tuple[Tensor]:
        beside = conditions.unsqueeze(2).expand(-1, -1, self.tokens, -1)
        return (torch.cat([latents, beside], dim=-1).flatten(1, 2) + position,)

    def _finish(self, x: Tensor) -> Tensor:
        return x[..., : self.dim]
