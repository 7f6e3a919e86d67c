"""Masked models: forecast the latents of what is hidden, from what is visible and where to look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.layers import Block, take
from jepa.models.positions import Form, GridPositions
from jepa.models.targets import Target
from jepa.models.video import VideoViT, initialise_deep
from jepa.schema import Mask, Prediction


class MaskPredictor(nn.Module):
    """Narrow transformer over context latents and mask tokens (I-JEPA, V-JEPA, V-JEPA 2).

    A learned token per mask generator asks for the latent at its position. Tokens are not sorted: attention does not
    depend on their order, given their positions.

    Args:
        dim: D, of the latents that come in and go out.
        grid: tubelets, rows and columns of the longest video, as the encoder makes them.
        masks: number of mask tokens, one per mask generator.
        width: of the transformer.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``width``.
        positions: as the encoder's.
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
    ) -> None:
        super().__init__()
        if width % heads or masks < 1:
            raise InputError(
                f"MaskPredictor was given width={width}, heads={heads}, masks={masks}; width must be a multiple of "
                "heads, and masks at least 1"
            )
        self.dim, self.grid = dim, tuple(grid)
        self.embed = nn.Linear(dim, width)
        self.mask_tokens = nn.Parameter(torch.zeros(masks, width))
        self.positions = GridPositions(positions, self.grid, width, heads)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, dim)
        initialise_deep(self, self.blocks)

    def forward(self, z: Tensor, context: Tensor, target: Tensor, token: int | Tensor = 0) -> Tensor:
        """Latents z [B,K,D] of tokens ``context [B,K]`` to forecasts [B,L,D] at ``target [B,L]``.

        ``token`` says which mask token asks, for the batch or for every row, int64 [B].
        """
        mask_token = self.mask_tokens[token].view(-1, 1, self.mask_tokens.shape[1])
        question = self.positions.add(mask_token.expand(*target.shape, -1), target)
        x = torch.cat((self.positions.add(self.embed(z), context), question), dim=1)
        rotate = self.positions.rotation(x, torch.cat((context, target), dim=1))
        for block in self.blocks:
            x = block(x, rotate)
        return self.proj(self.final_norm(x[:, context.shape[1] :]))


class MaskedJEPA(nn.Module):
    """A joint-embedding predictive model of masked video; pixels are never decoded.

    Args:
        encoder: makes the latents of the visible tokens.
        predictor: forecasts the latents of the hidden ones.
        target: what the forecasts are compared with: an EMA copy of the encoder that sees the whole video (I-JEPA,
            V-JEPA), or the encoder itself, where a regulariser forbids collapse.
    """

    def __init__(self, encoder: VideoViT, predictor: MaskPredictor, target: Target) -> None:
        super().__init__()
        theirs, mine = (encoder.dim, encoder.positions.grid), (predictor.dim, predictor.grid)
        if theirs != mine:
            raise InputError(
                f"the encoder makes latents of {theirs[0]} dimensions on a grid {theirs[1]}, but the predictor was "
                f"given dim={mine[0]} and grid={mine[1]}; set the predictor's as the encoder's"
            )
        self.encoder, self.predictor, self.target = encoder, predictor, target
        target.bind(encoder)

    def forward(self, video: Tensor, masks: Sequence[Mask]) -> list[Prediction]:
        """uint8 video [B,T,C,H,W] and a mask of each generator -> a prediction per mask, whose losses are averaged.

        Its p and h are [B,M,L,D], the forecasts and the target's latents of the M masks' tokens; its z is [B,1,K,D],
        the latents of the context, or [B,T/tubelet,N,D], those of the whole video, where the target needs them. The
        target sees the video once. Contexts of equal length go through the encoder in one pass.
        """
        self._check(masks)
        contexts = self._contexts(self.encoder.embed(self.encoder.standardise(video)), masks)
        forecasts = self._forecasts(contexts, masks)
        whole = self.encoder(video) if self.target.needs_latent else None
        h = self.target(self.encoder, video, whole).flatten(1, 2)
        nothing = h.new_zeros(len(h), 0, 0)  # no action leads from the context to the target
        return [
            Prediction(
                z=z.unsqueeze(1) if whole is None else whole,
                h=take(h, mask.target.flatten(1)).unflatten(1, mask.target.shape[1:]),
                action=nothing,
                p=p,
            )
            for z, p, mask in zip(contexts, forecasts, masks)
        ]

    def _check(self, masks: Sequence[Mask]) -> None:
        if not 0 < len(masks) <= len(self.predictor.mask_tokens):
            raise InputError(
                f"the model was given {len(masks)} masks, but has {len(self.predictor.mask_tokens)} mask tokens; set "
                "the predictor's masks to the number of mask generators"
            )
        if any(mask.packed for mask in masks):
            raise InputError("packed masks are not encoded here; set the collation of the masks to random_subset")

    def _contexts(self, tokens: Tensor, masks: Sequence[Mask]) -> list[Tensor]:
        """Latents [B,K,D] of each mask's context."""
        z: dict[int, Tensor] = {}
        for members in _alike([mask.context.shape for mask in masks]):
            keep = torch.cat([masks[i].context for i in members])
            z |= zip(members, self.encoder.encode(tokens, keep).chunk(len(members)))
        return [z[i] for i in range(len(masks))]

    def _forecasts(self, contexts: list[Tensor], masks: Sequence[Mask]) -> list[Tensor]:
        """Forecasts [B,M,L,D] of each mask's targets. The M masks of a sample do not see each other."""
        p: dict[int, Tensor] = {}
        for members in _alike([(mask.context.shape, mask.target.shape) for mask in masks]):
            target = torch.cat([masks[i].target for i in members])
            count = target.shape[1]
            z = torch.cat([contexts[i] for i in members]).repeat_interleave(count, 0)
            context = torch.cat([masks[i].context for i in members]).repeat_interleave(count, 0)
            token = torch.tensor(members, device=z.device).repeat_interleave(len(z) // len(members))
            forecast = self.predictor(z, context, target.flatten(0, 1), token)
            p |= zip(members, forecast.unflatten(0, target.shape[:2]).chunk(len(members)))
        return [p[i] for i in range(len(masks))]


def _alike(shapes: Sequence[object]) -> list[list[int]]:
    """Numbers of equal items, together."""
    groups: dict[object, list[int]] = {}
    for number, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(number)
    return list(groups.values())
