"""The video transformer of V-JEPA and V-JEPA 2: tokens are tubelets, and it can look at some of them only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.layers import Block, initialise, layer_norm, take
from jepa.models.positions import Form, GridPositions


def initialise_deep(module: nn.Module, blocks: nn.ModuleList) -> None:
    """Initialise a transformer as the JEPA papers do: the last layer of both branches of block l, counted from 1, is
    divided by sqrt(2 l), so that deep blocks begin by contributing little."""
    module.apply(initialise)
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp[-1].weight.div_(math.sqrt(2 * number))


class VideoViT(Encoder):
    """Vision transformer over tubelets (Bardes et al. 2024, V-JEPA; Assran et al. 2025, V-JEPA 2), no class token.

    ``forward`` maps uint8 video [B,T,C,size,size], T a multiple of the tubelet up to ``frames``, to latents
    [B,T/tubelet,N,D]. ``visible`` makes only some of these tokens, from only these pixels: it is what a context
    encoder sees. Tokens are numbered in raster order (tubelet, row, column).

    Args:
        size: height and width of a frame in pixels.
        frames: of the longest video.
        tubelet: frames of a token.
        patch: height and width of a token in pixels.
        dim: D, the width of the transformer and of its latents.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``dim``.
        positions: "sincos_uniform" (V-JEPA as released), "sincos" and, for images, "sincos_2d" (I-JEPA) are added to
            the tokens; "rotary_tiled" (V-JEPA 2 as released) and "rotary_interleaved" (V-JEPA 2.1, and the right
            one for new runs) turn queries and keys.
        norm: end with a layer norm without parameters; masked pretraining leaves that to the target.
    """

    def __init__(
        self,
        size: int = 224,
        frames: int = 16,
        tubelet: int = 2,
        patch: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: Form = "rotary_interleaved",
        norm: bool = False,
    ) -> None:
        super().__init__(size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), norm)
        if size % patch or frames % tubelet:
            raise InputError(
                f"VideoViT was given {frames} frames of {size} pixels and tubelets of {tubelet} frames of {patch} "
                "pixels; frames and size must be multiples of them"
            )
        if dim % heads:
            raise InputError(f"VideoViT was given dim={dim} and heads={heads}; dim must be a multiple of heads")
        self.frames, self.tubelet, self.patch, self.dim = frames, tubelet, patch, dim
        self.grid = (size // patch, size // patch)
        self.patch_embed = nn.Conv3d(3, dim, (tubelet, patch, patch), (tubelet, patch, patch))
        self.positions = GridPositions(positions, (frames // tubelet, *self.grid), dim, heads)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.patch_embed.weight, std=0.02)
        nn.init.zeros_(self.patch_embed.bias)
        initialise_deep(self, self.blocks)

    def forward(self, video: Tensor) -> Tensor:
        z = self.encode(self.embed(self.standardise(video)))
        return z.unflatten(1, (-1, self.grid[0] * self.grid[1]))

    def visible(self, video: Tensor, keep: Tensor) -> Tensor:
        """uint8 video [B,T,C,H,W] and token numbers [B,K] to latents [B,K,D] of tokens that see only each other."""
        return self.encode(self.embed(self.standardise(video)), keep)

    def embed(self, pixels: Tensor) -> Tensor:
        """Standardised floats [B,T,C,H,W] to one token per tubelet, [B,L,D], without positions."""
        frames = pixels.shape[1]
        if frames % self.tubelet or not 0 < frames <= self.frames:
            raise InputError(
                f"the encoder was given {frames} frames, but expects a multiple of {self.tubelet} up to {self.frames}; "
                "set the frames of the data or of the encoder so that both agree"
            )
        return self.patch_embed(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)

    def encode(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """What :meth:`embed` made, [B,L,D], to latents [B,L,D]; or of tokens ``keep [R,K]`` alone, [R,K,D].

        R is a multiple of B: row r keeps tokens of video r mod B, so that several masks go in one pass.
        """
        x = self.positions.add(tokens if keep is None else take(tokens, keep), keep)
        rotate = self.positions.rotation(x, keep)
        for block in self.blocks:
            x = block(x, rotate)
        x = self.final_norm(x)
        return layer_norm(x) if self.norm else x
