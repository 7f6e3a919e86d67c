"""The video transformer of the V-JEPA family: tokens are tubelets, and it can look at some of them only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError, check_least
from jepa.models.encoders import Encoder
from jepa.models.layers import Block, initialise, layer_norm, run, take
from jepa.models.packing import Beside, Packing
from jepa.models.positions import Form, Grid, GridPositions

SMALL = 1e-6  # standard deviation of fresh modality embeddings


def check_transformer(what: str, name: str, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
    """Raise :class:`InputError` unless a transformer can have these sizes; ``name`` is what its width is called."""
    for size, given in ((name, width), ("depth", depth), ("heads", heads)):
        check_least(f"{size} of {what}", given, 1)
    if width % heads:
        raise InputError(f"{what} was given {name}={width} and heads={heads}; {name} must be a multiple of heads")
    if not 0.5 < width * mlp_ratio < math.inf:
        raise InputError(
            f"{what} was given {name}={width} and mlp_ratio={mlp_ratio}, expected feed-forward layers of a width that "
            "rounds to 1 or more; give a larger mlp_ratio, e.g. 4.0"
        )


def initialise_deep(module: nn.Module, blocks: nn.ModuleList) -> None:
    """Initialise a transformer as the JEPA papers do: the last layer of both branches of block l, counted from 1, is
    divided by sqrt(2 l), so that deep blocks begin by contributing little."""
    module.apply(initialise)
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.last.weight.div_(math.sqrt(2 * number))


class VideoViT(Encoder):
    """Vision transformer over tubelets (Bardes et al. 2024, V-JEPA; Assran et al. 2025, V-JEPA 2), no class token.

    ``forward`` maps uint8 video [B,T,C,H,W], T a multiple of the tubelet up to ``frames``, to latents
    [B,T/tubelet,N,D]. ``visible`` makes only some of these tokens, from only these pixels: it is what a context
    encoder does. With rotary positions, H and W may be any multiples of the patch.

    With ``levels`` (V-JEPA 2.1), what is trained is the concatenation of several blocks' outputs, each under a layer
    norm of its own: ``latents`` and ``visible`` give [...,levels*D], ``forward`` the last level alone.

    Args:
        size: height and width of a frame in pixels, one number where they are equal.
        frames: of the longest video.
        tubelet: frames that a token spans.
        patch: height and width of a token in pixels.
        dim: D, the width of the latent and of the transformer.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``dim``.
        positions: "sincos_uniform" (V-JEPA as released), "sincos" and, for images, "sincos_2d" (I-JEPA) are added to
            the tokens; "rotary_tiled" (V-JEPA 2 as released), "rotary_interleaved" (the right one for new runs) and
            "rotary_interpolated" (V-JEPA 2.1) turn queries and keys.
        norm: end with a layer norm without parameters; masked pretraining leaves that to the target.
        swiglu: gated feed-forward layers of two thirds of the hidden width.
        recompute: keep no activations within blocks, but compute them again in the backward pass: less memory.
        levels: numbers of the blocks, from 0 and up to the last, whose outputs are trained; the last alone by default.
        images: clips of one frame are images, whose patches have an embedding of their own, and learned vectors that
            are added to all tokens tell images and videos apart (V-JEPA 2.1).
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        frames: int = 16,
        tubelet: int = 2,
        patch: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: Form = "rotary_interleaved",
        norm: bool = False,
        swiglu: bool = False,
        recompute: bool = False,
        levels: tuple[int, ...] | None = None,
        images: bool = False,
    ) -> None:
        super().__init__(size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), norm)
        height, width = self.frame
        sizes = {"height": height, "width": width, "frames": frames, "tubelet": tubelet, "patch": patch}
        for name, given in sizes.items():
            check_least(f"{name} of VideoViT", given, 1)
        check_transformer("VideoViT", "dim", dim, depth, heads, mlp_ratio)
        if height % patch or width % patch or frames % tubelet:
            raise InputError(
                f"VideoViT was given {frames} frames of {height}x{width} pixels and tubelets of {tubelet} frames of "
                f"{patch} pixels; frames and size must be multiples of them"
            )
        if levels is not None and (list(levels) != sorted({*levels, depth - 1}) or levels[0] < 0):
            raise InputError(
                f"VideoViT was given levels={levels} of {depth} blocks; give rising numbers of blocks, counted from 0, "
                f"that end with the last, {depth - 1}"
            )
        self.frames, self.tubelet, self.patch, self.dim = frames, tubelet, patch, dim
        self.recompute, self.images = recompute, images
        self.levels = None if levels is None else tuple(levels)
        self.grid = (height // patch, width // patch)
        self.patch_embed = nn.Conv3d(3, dim, (tubelet, patch, patch), (tubelet, patch, patch))
        self.positions = GridPositions(positions, (frames // tubelet, *self.grid), dim, heads)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, swiglu) for _ in range(depth))
        if levels is None:
            self.final_norm = nn.LayerNorm(dim, eps=1e-6)
        else:
            self.level_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in levels)
        if images:
            self.image_patch_embed = nn.Conv3d(3, dim, (1, patch, patch), (1, patch, patch))
            self.video_embedding = nn.Parameter(SMALL * torch.randn(1, 1, dim))
            self.image_embedding = nn.Parameter(SMALL * torch.randn(1, 1, dim))
        for embed in (self.patch_embed, self.image_patch_embed) if images else (self.patch_embed,):
            nn.init.trunc_normal_(embed.weight, std=0.02)
            nn.init.zeros_(embed.bias)
        initialise_deep(self, self.blocks)

    @property
    def width(self) -> int:
        return self.dim * (1 if self.levels is None else len(self.levels))

    def fits(self, height: int, width: int) -> bool:
        if self.positions.rotary:
            return height >= self.patch <= width and height % self.patch == width % self.patch == 0
        return super().fits(height, width)

    def is_image(self, frames: int) -> bool:
        """Whether a clip of so many frames goes through the embedding of images."""
        return self.images and frames == 1

    def clip_grid(self, video: Tensor) -> Grid:
        """Tubelets, rows and columns of a clip [B,T,C,H,W]."""
        frames, (height, width) = video.shape[1], video.shape[-2:]
        if self.is_image(frames):
            return 1, height // self.patch, width // self.patch
        if frames % self.tubelet or not 0 < frames <= self.frames:
            raise InputError(
                f"the encoder was given {frames} frames, but expects a multiple of {self.tubelet} up to {self.frames}; "
                "set the frames of the data or of the encoder so that both agree"
            )
        return frames // self.tubelet, height // self.patch, width // self.patch

    def forward(self, video: Tensor) -> Tensor:
        return self.latents(video)[..., -self.dim :]

    def latents(self, video: Tensor) -> Tensor:
        """uint8 video [B,T,C,H,W] -> all levels of all tokens, [B,T/tubelet,N,levels*D]."""
        self._check(video)
        grid = self.clip_grid(video)
        x = self._embed(self._standardise(self._patches(video, grid)), self.is_image(video.shape[1]))
        return self.encode(x, grid=grid).unflatten(1, (grid[0], -1))

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def layers(self, video: Tensor, numbers: Sequence[int]) -> Tensor:
        """The outputs of these blocks side by side, [B,T/tubelet,L*N,D], each under the last norm, as published; one
        that is a trained level has a norm of its own."""
        self._check(video)
        grid = self.clip_grid(video)
        x = self._embed(self._standardise(self._patches(video, grid)), self.is_image(video.shape[1]))
        x = self.positions.add(x, None)
        found = run(self.blocks, x, self.positions.rotation(x, None, grid), levels=numbers)
        norms = {} if self.levels is None else dict(zip(self.levels, self.level_norms))
        last = self.final_norm if self.levels is None else self.level_norms[-1]
        found = [norms.get(number, last)(level) for number, level in zip(numbers, found)]
        found = [layer_norm(level) for level in found] if self.norm else found
        return torch.cat([level.unflatten(1, (grid[0], -1)) for level in found], dim=2)

    def visible(self, video: Tensor, keep: Tensor, packing: Packing | Beside | None = None) -> Tensor:
        """uint8 video [B,T,C,H,W] and token numbers [R,K] to latents [R,K,levels*D] of tokens that see only each other.

        R is a multiple of B: row r keeps tokens of video r mod B, so that several masks go in one pass. Packed rows of
        different lengths lie end to end in [1,sum of the K], or side by side in [B,sum of the K], as ``packing`` says.
        Other pixels are not read.
        """
        self._check(video)
        grid = self.clip_grid(video)
        patches = take(self._patches(video, grid).flatten(2), keep, None if packing is None else packing.row)
        x = self._embed(self._standardise(patches.unflatten(2, (3, -1))), self.is_image(video.shape[1]))
        return self._transform(x, keep, grid, packing)

    def embed(self, pixels: Tensor) -> Tensor:
        """Standardised floats [B,T,C,H,W] to one token per tubelet, [B,L,D], without positions."""
        return self._embed(self._patches(pixels, self.clip_grid(pixels)), self.is_image(pixels.shape[1]))

    def encode(self, tokens: Tensor, keep: Tensor | None = None, grid: Grid | None = None) -> Tensor:
        """What :meth:`embed` made, [B,L,D], to latents [B,L,levels*D]; or of tokens ``keep [R,K]``, [R,K,levels*D].

        ``grid`` is :meth:`clip_grid` of the clip, by default that of the longest.
        """
        return self._transform(tokens if keep is None else take(tokens, keep), keep, grid)

    def _patches(self, pixels: Tensor, grid: Grid) -> Tensor:
        """[B,T,C,H,W] -> [B,L,C,frames*rows*columns of a token], as the weights of a convolution lie."""
        split = pixels.unflatten(4, (grid[2], -1)).unflatten(3, (grid[1], -1)).unflatten(1, (grid[0], -1))
        return split.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(5).flatten(1, 3)

    def _standardise(self, patches: Tensor) -> Tensor:
        return torch.addcmul(self.shift[:, 0], patches.to(self.scale.dtype), self.scale[:, 0])

    def _embed(self, patches: Tensor, image: bool) -> Tensor:
        """Standardised [B,L,C,n] -> [B,L,D]."""
        if not self.images:
            return self._project(patches, self.patch_embed)
        parts = (self.patch_embed, self.video_embedding), (self.image_patch_embed, self.image_embedding)
        (embed, vector), (other, _) = reversed(parts) if image else parts
        x = self._project(patches, embed) + vector
        # a gradient of zero rather than none: processes that see images agree with those that see videos
        return x + 0 * sum(value.sum() for value in (*other.parameters(), self.video_embedding, self.image_embedding))

    @staticmethod
    def _project(patches: Tensor, embed: nn.Conv3d) -> Tensor:
        # a convolution whose stride is its kernel is a matrix product, here of the wanted tokens alone
        return F.linear(patches.flatten(2), embed.weight.flatten(1), embed.bias)

    def _transform(
        self, x: Tensor, index: Tensor | None, grid: Grid | None, packing: Packing | Beside | None = None
    ) -> Tensor:
        """Tokens [R,K,D] at ``index [R,K]`` to latents [R,K,levels*D]."""
        x = self.positions.add(x, index)
        rotate = self.positions.rotation(x, index, grid)
        found = run(self.blocks, x, rotate, packing, self.recompute, self.levels)
        norms = (self.final_norm,) if self.levels is None else self.level_norms
        found = [norm(level) for norm, level in zip(norms, found)]
        found = [layer_norm(level) for level in found] if self.norm else found
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)
