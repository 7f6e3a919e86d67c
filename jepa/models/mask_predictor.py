"""The predictor of the masked models: from what is visible and where to look, to the latents there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_least
from jepa.models.layers import Block, run
from jepa.models.packing import Packing
from jepa.models.positions import Form, Grid, GridPositions
from jepa.models.video import SMALL, check_transformer, initialise_deep


class MaskPredictor(nn.Module):
    """Narrow transformer over context latents and mask tokens (I-JEPA, V-JEPA, V-JEPA 2 and 2.1).

    A learned token per mask generator asks for the latent at its position. Tokens are not sorted: attention does not
    depend on their order, given their positions.

    Args:
        dim: D, of one level of the latents that come in.
        grid: tubelets, rows and columns of the longest video, as the encoder makes them.
        masks: number of mask tokens, one per mask generator.
        width: of the transformer.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``width``.
        positions: as the encoder's.
        swiglu: gated feed-forward layers of two thirds of the hidden width.
        recompute: keep no activations within blocks, but compute them again in the backward pass: less memory.
        levels: of the encoder; several are mixed by one more layer on their way in.
        context: forecast the visible tokens too, through a head of their own (V-JEPA 2.1).
        images: learned vectors tell images and videos apart, as the encoder's.
        out: width of the forecasts, levels*D by default; that of another teacher where the target has one.
        token_std: the mask tokens begin as truncated normal with this standard deviation (I-JEPA: 0.02), or as zeros
            (V-JEPA and later).
    """

    def __init__(
        self,
        dim: int = 384,
        grid: tuple[int, int, int] = (8, 14, 14),
        masks: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        positions: Form = "rotary_interleaved",
        swiglu: bool = False,
        recompute: bool = False,
        levels: int = 1,
        context: bool = False,
        images: bool = False,
        out: int | None = None,
        token_std: float = 0.0,
    ) -> None:
        super().__init__()
        for name, given in {"dim": dim, "masks": masks, "levels": levels, "out": out}.items():
            check_least(f"{name} of MaskPredictor", given, 1)
        check_transformer("MaskPredictor", "width", width, depth, heads, mlp_ratio)
        if not 0 <= token_std < float("inf"):
            raise InputError(f"MaskPredictor was given token_std={token_std}; expected 0 or more, e.g. 0.02")
        self.dim, self.grid, self.levels = dim, tuple(grid), levels
        self.recompute, self.images = recompute, images
        self.out = levels * dim if out is None else out
        self.embed = (
            nn.Linear(dim, width)
            if levels == 1
            else nn.Sequential(nn.Linear(levels * dim, dim), nn.GELU(), nn.Linear(dim, width))
        )
        self.mask_tokens = nn.Parameter(torch.zeros(masks, width))
        self.positions = GridPositions(positions, self.grid, width, heads)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, swiglu) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, self.out)
        self.proj_context = nn.Linear(width, self.out) if context else None
        if images:
            self.video_embedding = nn.Parameter(SMALL * torch.randn(1, 1, width))
            self.image_embedding = nn.Parameter(SMALL * torch.randn(1, 1, width))
        initialise_deep(self, self.blocks)
        if token_std:  # last, and only then: other models draw the numbers that they always drew
            nn.init.trunc_normal_(self.mask_tokens, std=token_std)

    def forward(
        self, z: Tensor, context: Tensor, target: Tensor, token: int | Tensor = 0, grid: Grid | None = None
    ) -> Tensor:
        """Latents z [B,K,levels*D] of tokens ``context [B,K]`` to forecasts [B,L,out] at ``target [B,L]``.

        ``token`` says which mask token asks, for the batch or for every row, int64 [B]; ``grid`` is that of the clips,
        by default that of the longest.
        """
        question = self.mask_tokens[token].view(-1, 1, self.mask_tokens.shape[1]).expand(*target.shape, -1)
        return self.forecast(z, context, question, target, grid)[0]

    def questions(self, tokens: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Each of these mask tokens so many times, one after the other: [sum of the counts, width]."""
        return torch.cat([self.mask_tokens[token].expand(count, -1) for token, count in zip(tokens, counts)])

    def forecast(
        self,
        z: Tensor,
        context: Tensor,
        question: Tensor,
        target: Tensor,
        grid: Grid | None = None,
        image: bool = False,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Forecasts [R,L,out] at the targets and, where there is a head for it, [R,K,out] at the context.

        Args:
            z: latents [B,K,levels*D] of the context; R is a multiple M of B, and row r of the targets belongs to
                context r // M.
            context: token numbers [B,K].
            question: mask tokens [R,L,width].
            target: token numbers [R,L].
            grid: that of the clips, by default that of the longest.
            image: whether the clips are images.
            packing: of context and targets end to end, all in one row.
        """
        x, count = self.positions.add(self.embed(z), context), len(target) // len(context)
        if count > 1:
            x, context = x.repeat_interleave(count, 0), context.repeat_interleave(count, 0)
        x = torch.cat((x, self.positions.add(question, target)), dim=1)
        if self.images:
            here, other = self.video_embedding, self.image_embedding
            here, other = (other, here) if image else (here, other)
            x = x + (here + 0 * other)  # as in the encoder, a gradient of zero rather than none
        rotate = self.positions.rotation(x, torch.cat((context, target), dim=1), grid)
        seen = context.shape[1]
        if self.proj_context is not None or packing is not None:
            (x,) = run(self.blocks, x, rotate, packing, self.recompute)
            x = self.final_norm(x)
            at_context = None if self.proj_context is None else self.proj_context(x[:, :seen])
            return self.proj(x[:, seen:]), at_context
        (x,) = run(self.blocks, x, rotate, None, self.recompute, first=seen)  # nobody reads the last block's context
        return self.proj(self.final_norm(x)), None
