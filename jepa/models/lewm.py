"""The parts of LeWM (Maes et al. 2026, arXiv:2603.19312): a class-token ViT and a predictor over a short window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.layers import Block, Store, initialise
from jepa.models.predictors import Predictor


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


class DoubleNormBlock(nn.Module):
    """A causal block with zero-initialised adaptive layer norm (Peebles & Xie 2023) around layers that norm again.

    x [B,L,width], condition [B,L,width] -> [B,L,width]. ``head`` is the width of a head, whatever ``width``.
    """

    def __init__(self, width: int, heads: int, head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head, self.dropout = heads, head, dropout
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)
        self.attn_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head, bias=False)
        self.proj = nn.Sequential(nn.Linear(heads * head, width), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, condition: Tensor, store: Store | None = None, newest: bool = False) -> Tensor:
        """``store`` adds the keys and values of the frames before; ``newest`` asks for the last frame alone."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        y = torch.addcmul(shift1, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale1)
        if newest:
            x, gate1, shift2, scale2, gate2 = (part[:, -1:] for part in (x, gate1, shift2, scale2, gate2))
        x = x + gate1 * self._attend(y, x.shape[1], store)
        return x + gate2 * self.mlp(torch.addcmul(shift2, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale2))

    def _attend(self, x: Tensor, queries: int, store: Store | None) -> Tensor:
        q, k, v = self.qkv(self.attn_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if store is not None:
            k, v = store(k, v)
        dropout = self.dropout * self.training
        x = F.scaled_dot_product_attention(q[:, :, -queries:], k, v, dropout_p=dropout, is_causal=queries > 1)
        return self.proj(x.transpose(1, 2).flatten(2))


@dataclass
class WindowCache:
    """The last frames, at most a window of them, and the embedded actions between them.

    Until the window moves on, also the keys and values of the frames before the newest; no more afterwards.
    """

    latents: Tensor  # [B,L,D]; the newest waits for its action
    conditions: Tensor  # [B,L-1,width]
    keys: list[Tensor]  # one per block: [B,heads,L-1,head]; none when the window has moved
    values: list[Tensor]

    def expand(self, copies: int) -> WindowCache:
        """Row b becomes rows b*copies ... (b+1)*copies-1: one past, many candidate futures."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(copies, dim=0)

        lists = ([*map(repeat, parts)] for parts in (self.keys, self.values))
        return WindowCache(repeat(self.latents), repeat(self.conditions), *lists)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [B,heads,L,head] to those of a layer; return all of them."""
        self.keys[layer] = torch.cat([self.keys[layer], k], dim=2)
        self.values[layer] = torch.cat([self.values[layer], v], dim=2)
        return self.keys[layer], self.values[layer]


class WindowPredictor(Predictor):
    """Causal transformer over the last ``window`` frames, one token each, conditioned on actions.

    Positions are learned and count from the start of the window, so that what a frame contributes changes when the
    window moves on: from then on no keys and values can be kept, as in a ring. ``begin`` and ``step`` keep the last
    latents and embedded actions instead and compute the window again; ``forward`` gives the same numbers, each forecast
    from the window that ends with its frame. Up to ``window`` frames are one pass, as it is published.

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

    def _conditions(self, action: Tensor) -> Tensor:
        """[B,T,A] -> [B,T,width]"""
        assert self.condition is not None, "WindowPredictor.bind was not called"
        return self.condition(action)

    def _see(
        self, latents: Tensor, conditions: Tensor, cache: WindowCache | None = None, newest: bool = False
    ) -> Tensor:
        """Latents [B,L,D] and conditions [B,L,width], all of one window -> [B,L,width]; [B,1,width] of the newest.

        With a cache they follow the frames whose keys and values are there, and leave theirs.
        """
        first = 0 if cache is None else cache.keys[0].shape[2]
        x = self.dropout(self.embed(latents) + self.position[:, first : first + latents.shape[1]])
        for layer, block in enumerate(self.blocks):
            store = None if cache is None else partial(cache.store, layer)
            x = block(x, conditions, store, newest and layer == len(self.blocks) - 1)
        return self.final_norm(x)

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        steps, tokens = z.shape[1:3]
        assert tokens == 1, f"WindowPredictor sees one token per frame, not {tokens}"
        parts = z.squeeze(2), self._conditions(action)
        x = self._see(*(part[:, : self.window] for part in parts))
        if (later := steps - self.window) > 0:
            windows = (part[:, 1:].unfold(1, self.window, 1).transpose(2, 3).flatten(0, 1) for part in parts)
            x = torch.cat([x, self._see(*windows)[:, -1].unflatten(0, (-1, later))], dim=1)
        return self.projector(x.flatten(0, 1)).view(z.shape)

    def begin(self, z: Tensor, action: Tensor) -> WindowCache:
        steps = z.shape[1]
        assert action.shape[1] == steps - 1, f"{steps} latents want {steps - 1} actions between them: {action.shape}"
        first = max(0, steps - self.window)
        latents, conditions = z[:, first:, 0], self._conditions(action[:, first:])
        if first:
            return WindowCache(latents, conditions, [], [])
        nothing = [z.new_zeros(len(z), block.heads, 0, block.head) for block in self.blocks]
        cache = WindowCache(latents, conditions, [*nothing], [*nothing])
        if steps > 1:
            self._see(latents[:, :-1], conditions, cache)
        return cache

    def step(self, cache: WindowCache, action: Tensor) -> tuple[Tensor, WindowCache]:
        condition = self._conditions(action.unsqueeze(1))
        conditions = torch.cat([cache.conditions, condition], dim=1)
        after = WindowCache(cache.latents, conditions, [*cache.keys], [*cache.values])
        if cache.keys:
            x = self._see(cache.latents[:, -1:], condition, after)
        else:
            x = self._see(cache.latents, conditions, newest=True)
        z = self.projector(x[:, -1]).unsqueeze(1)
        first = max(0, cache.latents.shape[1] + 1 - self.window)
        after.latents, after.conditions = torch.cat([cache.latents, z], dim=1)[:, first:], conditions[:, first:]
        if first:
            after.keys, after.values = [], []
        return z, after
