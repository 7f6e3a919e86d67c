"""The parts of LeWM (Maes et al. 2026, arXiv:2603.19312): a class-token ViT and a predictor over a short window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.layers import Block, Store, initialise
from jepa.models.windowed import WindowBlock, WindowedPredictor


def projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, GELU, linear on rows [n,inputs]: what SIGReg can shape, where a layer norm resists it."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, outputs))


class ClassTokenViT(Encoder):
    """Vision transformer with learned positions whose class token, projected, is the latent of a frame: N = 1.

    Args:
        dim: D, the width of the latent.
        size: height and width of a frame in pixels.
        patch: height and width of a patch in pixels.
        width: of the transformer.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``width``.
        hidden: width inside the projector, where the batch norm is.
        norm: end with a layer norm without parameters; it keeps SIGReg from being minimised.
    """

    def __init__(
        self,
        dim: int = 192,
        size: int = 224,
        patch: int = 14,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        hidden: int = 2048,
        norm: bool = False,
    ) -> None:
        super().__init__(size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), norm)
        if size % patch or width % heads:
            raise InputError(
                f"ClassTokenViT was given size {size}, patch {patch}, width {width}, heads {heads}; the size must be a "
                "multiple of the patch, and the width of the heads"
            )
        self.dim, self.grid = dim, (1, 1)
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width)
        self.apply(initialise)
        self.projector = projector(width, hidden, dim)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-12  # as published: the class token begins so small that 1e-6 would be felt

    def features(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.projector(self.final_norm(self.blocks(x))[:, 0]).unsqueeze(1)


class DoubleNormBlock(WindowBlock):
    """A block with zero-initialised adaptive layer norm (Peebles & Xie 2023) around layers that norm again.

    x [B,L,width], condition [B,L,width] -> [B,L,width]. ``head`` is the width of a head, whatever ``width``.
    """

    def __init__(self, width: int, heads: int, head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)
        self._build(width, heads, head, hidden, dropout)

    def forward(
        self, x: Tensor, condition: Tensor, order: Mapping[str, Any], store: Store | None = None, newest: int = 0
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        y = torch.addcmul(shift1, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale1)
        if newest:
            x, gate1, shift2, scale2, gate2 = (part[:, -newest:] for part in (x, gate1, shift2, scale2, gate2))
        x = x + gate1 * self._attend(y, x.shape[1], order, store)
        return x + gate2 * self.mlp(torch.addcmul(shift2, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale2))


class WindowPredictor(WindowedPredictor):
    """LeWM's predictor: one token per frame, conditioned on actions; what a step costs is told by its base.

    Args:
        dim: D, of the latents that come in and go out.
        width: of the transformer; a linear map leads to it when it differs from ``dim``.
        depth: number of blocks.
        heads: attention heads.
        head: width of a head.
        window: how many frames a forecast sees.
        hidden: width inside the feed-forward layers.
        smooth: width of the linear map in front of the action's embedding; null for that of the action.
        projector_hidden: width inside the output's projector, where the batch norm is.
        dropout: fraction of activations that training drops.
    """

    tokens = 1

    def __init__(
        self,
        dim: int = 192,
        width: int = 192,
        depth: int = 6,
        heads: int = 16,
        head: int = 64,
        window: int = 3,
        hidden: int = 2048,
        smooth: int | None = None,
        projector_hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if window < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"WindowPredictor was given window {window} and dropout {dropout}; it needs a window of at least 1 and "
                "a fraction below 1"
            )
        self.dim, self.width, self.window, self.smooth = dim, width, window, smooth
        self.condition: nn.Sequential | None = None
        self.embed = nn.Linear(dim, width) if dim != width else nn.Identity()
        self.position = nn.Parameter(torch.randn(1, window, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DoubleNormBlock(width, heads, head, hidden, dropout) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)
        self.projector = projector(width, projector_hidden, dim)

    def bind(self, action_width: int) -> None:
        smooth = self.smooth or action_width
        self.condition = nn.Sequential(
            nn.Linear(action_width, smooth),
            nn.Linear(smooth, 4 * self.width),
            nn.SiLU(),
            nn.Linear(4 * self.width, self.width),
        )

    def _embed(self, latents: Tensor, conditions: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.dropout(self.embed(latents.flatten(1, 2)) + position), conditions

    def _finish(self, x: Tensor) -> Tensor:
        return self.projector(x.flatten(0, 2)).view(*x.shape[:3], self.dim)
