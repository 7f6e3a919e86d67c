"""Masked pretraining the published way, as plain as its description: what the training step is measured against.

Nothing here is used by the library. The cost is in where the work is done, not in what is computed; given our weights
and masks, the losses are ours. Of every clip:

* the whole clip is patchified for every pass, and the tokens of a mask are gathered afterwards;
* the encoder runs once for each mask;
* every attention builds the rotary tables of every axis anew, for queries and for keys, and under a mask for each head;
* the predictor makes mask tokens for all positions and gathers those it needs, then sorts context and target tokens
  by position, sample by sample, and undoes that afterwards;
* the average of the weights follows parameter by parameter, and every step waits for the value of its loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.masked import MaskedJEPA
from jepa.models.positions import Grid
from jepa.schema import Mask


def turn(x: Tensor, place: Tensor, tiled: bool) -> Tensor:
    """Queries or keys ``[B,heads,L,d]`` turned by the places ``[B,heads,L]`` or ``[L]`` along one axis."""
    width = x.shape[-1]
    omega = 1.0 / 10000 ** (torch.arange(width // 2, dtype=x.dtype, device=x.device) / (width / 2))
    angle = place.unsqueeze(-1) * omega
    sine, cosine = angle.sin(), angle.cos()
    if tiled:
        sine, cosine = (table.repeat(*[1] * (table.ndim - 1), 2) for table in (sine, cosine))
    else:
        sine, cosine = sine.repeat_interleave(2, dim=-1), cosine.repeat_interleave(2, dim=-1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cosine + torch.stack((-second, first), dim=-1).flatten(-2) * sine


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Tokens ``index [B,K]`` of ``x [B,L,D]``."""
    return torch.gather(x, 1, index.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


class Attention(nn.Module):
    """Attention that makes its own rotary tables."""

    def __init__(self, width: int, heads: int, grid: Grid, tiled: bool) -> None:
        super().__init__()
        self.heads, self.grid, self.tiled = heads, grid, tiled
        self.axis = 2 * (width // heads // 3 // 2)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if index is None:
            index = torch.arange(length, device=x.device)
        else:
            index = index.unsqueeze(1).repeat(1, self.heads, 1)
        queries, keys = self._turned(qkv[0], index), self._turned(qkv[1], index)
        x = F.scaled_dot_product_attention(queries, keys, qkv[2])
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))

    def _turned(self, x: Tensor, index: Tensor) -> Tensor:
        frame = index // (self.grid[1] * self.grid[2])
        within = index - frame * self.grid[1] * self.grid[2]
        row = within // self.grid[2]
        column = within - row * self.grid[2]
        parts = [
            turn(x[..., number * self.axis : (number + 1) * self.axis], place, self.tiled)
            for number, place in enumerate((frame, row, column))
        ]
        if 3 * self.axis < x.shape[-1]:
            parts.append(x[..., 3 * self.axis :])
        return torch.cat(parts, dim=-1)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, grid: Grid, tiled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, grid, tiled)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), index)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Standardised video [B,C,T,H,W] to tokens, of all or of those of a mask."""

    def __init__(self, width: int, depth: int, heads: int, grid: Grid, tubelet: int, patch: int, tiled: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, width, (tubelet, patch, patch), (tubelet, patch, patch))
        self.blocks = nn.ModuleList(Block(width, heads, grid, tiled) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        x = self.patch_embed(video).flatten(2).transpose(1, 2)
        if index is not None:
            x = gather(x, index)
        for block in self.blocks:
            x = block(x, index)
        return self.final_norm(x)


class Predictor(nn.Module):
    """Forecasts at the target's positions, from tokens in the order of their positions."""

    def __init__(self, dim: int, width: int, depth: int, heads: int, grid: Grid, masks: int, tiled: bool) -> None:
        super().__init__()
        self.tokens = grid[0] * grid[1] * grid[2]
        self.embed, self.proj = nn.Linear(dim, width), nn.Linear(width, dim)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, width)) for _ in range(masks))
        self.blocks = nn.ModuleList(Block(width, heads, grid, tiled) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, z: Tensor, context: Tensor, target: Tensor, number: int) -> Tensor:
        x = self.embed(z)
        question = gather(self.mask_tokens[number].repeat(len(z), self.tokens, 1), target)
        x, index = torch.cat((x, question), dim=1), torch.cat((context, target), dim=1)
        order = torch.argsort(index, dim=1)
        index = torch.stack([index[i, row] for i, row in enumerate(order)])
        x = torch.stack([x[i, row, :] for i, row in enumerate(order)])
        for block in self.blocks:
            x = block(x, index)
        x = self.final_norm(x)
        back = torch.argsort(order, dim=1)
        x = torch.stack([x[i, row, :] for i, row in enumerate(back)])
        return self.proj(x[:, context.shape[1] :])


class Published(nn.Module):
    """Encoder, target and predictor, with the weights of one of our models.

    Args:
        world: the model; its masks have one target, and its positions are rotary.
    """

    def __init__(self, world: MaskedJEPA) -> None:
        super().__init__()
        ours, predictor = world.encoder, world.predictor
        grid, tiled = ours.positions.grid, ours.positions.form == "rotary_tiled"
        heads, width = ours.blocks[0].attn.heads, predictor.embed.out_features
        size = (ours.dim, len(ours.blocks), heads, grid, ours.tubelet, ours.patch, tiled)
        self.encoder, self.target = Encoder(*size), Encoder(*size).requires_grad_(False)
        count, heads = len(predictor.mask_tokens), predictor.blocks[0].attn.heads
        self.predictor = Predictor(ours.dim, width, len(predictor.blocks), heads, grid, count, tiled)
        self.encoder.load_state_dict(_state(ours))
        self.target.load_state_dict(_state(world.target.teacher))
        tokens = {f"mask_tokens.{i}": token.view(1, 1, -1) for i, token in enumerate(predictor.mask_tokens.detach())}
        self.predictor.load_state_dict(tokens | {k: v for k, v in _state(predictor).items() if k != "mask_tokens"})

    def forward(self, video: Tensor, masks: Sequence[Mask]) -> Tensor:
        """Standardised video [B,C,T,H,W] -> the loss."""
        with torch.no_grad():
            h = self.target(video)
            h = F.layer_norm(h, h.shape[-1:])
            hidden = [gather(h, mask.target[:, 0]) for mask in masks]
        contexts = [self.encoder(video, mask.context) for mask in masks]
        loss = 0
        for number, (z, mask, h) in enumerate(zip(contexts, masks, hidden)):
            forecast = self.predictor(z, mask.context, mask.target[:, 0], number)
            loss = loss + torch.mean(torch.abs(forecast - h))
        return loss / len(masks)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the target towards the encoder."""
        pairs = [(mine, theirs) for mine, theirs in zip(self.target.parameters(), self.encoder.parameters())]
        for mine, theirs in pairs:
            mine.mul_(momentum).add_((1 - momentum) * theirs)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The weights, without tables of positions and statistics of pixels."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}
