"""V-JEPA 2-AC's predictor (Assran et al. 2025, arXiv:2506.09985): action and pose are tokens beside the patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.layers import Block, initialise, layer_norm
from jepa.models.positions import Table, rotary_table_3d, rotate_3d


@dataclass
class GrowingCache:
    """Rotated keys and values of every frame so far, and the latent that waits for its action. Never overwritten."""

    pending: Tensor  # [B,N,D]
    keys: list[Tensor]  # one per block: [B,heads,time*tokens,head]
    values: list[Tensor]
    time: int = 0  # frames stored so far

    def expand(self, copies: int) -> GrowingCache:
        """Row b becomes rows b*copies ... (b+1)*copies-1: one past, many candidate futures."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(copies, dim=0)

        return GrowingCache(repeat(self.pending), [*map(repeat, self.keys)], [*map(repeat, self.values)], self.time)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [B,heads,L,head] to those of a layer; return all of them."""
        self.keys[layer] = torch.cat([self.keys[layer], k], dim=2)
        self.values[layer] = torch.cat([self.values[layer], v], dim=2)
        return self.keys[layer], self.values[layer]


class PosePredictor(nn.Module):
    """Transformer over the tokens [action, pose, (camera), N patches] of each frame, causal from frame to frame.

    Within a frame all tokens see each other. Positions are rotary over (frame, row, column), in the tiled form of the
    published weights; the conditioning tokens have only a frame. No forecast depends on a later frame, and frames keep
    their numbers, so that ``begin`` and ``step``, which keep all keys and values, give exactly what ``forward`` gives.

    Args:
        dim: D, of the latents that come in and go out.
        width: of the transformer.
        depth: number of blocks.
        heads: attention heads.
        grid: rows and columns of patches in a frame.
        mlp_ratio: hidden width of the feed-forward layers over ``width``.
        camera: how many of the last numbers of proprioception are the camera's pose, with a token of its own.
        norm: end with a layer norm without parameters; set it as on the target's side.
    """

    def __init__(
        self,
        dim: int = 1408,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        grid: tuple[int, int] = (16, 16),
        mlp_ratio: float = 4.0,
        camera: int = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if width % heads or camera < 0:
            raise InputError(
                f"PosePredictor was given width {width}, heads {heads}, camera {camera}; the width must be a multiple "
                "of the heads, and camera at least 0"
            )
        self.dim, self.heads, self.grid, self.tokens = dim, heads, tuple(grid), grid[0] * grid[1]
        self.camera, self.norm, self.head = camera, norm, width // heads
        self.embed = nn.Linear(dim, width)
        self.conditions = nn.ModuleDict()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, dim)
        self.apply(initialise)

    def bind(self, action_width: int, proprio_width: int) -> None:
        """Build the embeddings of what only the data knows: actions [A] and poses [P], the camera's last in P."""
        if proprio_width <= self.camera:
            raise InputError(
                f"PosePredictor was given proprioception of width {proprio_width}, but wants a pose of the robot and "
                f"{self.camera} numbers of the camera; use episodes that record proprio, or set camera"
            )
        sizes = {"action": action_width, "pose": proprio_width - self.camera}
        sizes |= {"camera": self.camera} if self.camera else {}
        width = self.embed.out_features
        self.conditions = nn.ModuleDict({name: nn.Linear(size, width) for name, size in sizes.items()})
        self.conditions.apply(initialise)

    def _embed(self, z: Tensor, action: Tensor, proprio: Tensor) -> Tensor:
        """z [B,T,N,D], action [B,T,A], proprio [B,T,P] -> [B,T,conditions+N,width]."""
        assert len(self.conditions), "PosePredictor.bind was not called"
        pose = proprio.shape[-1] - self.camera
        parts = {"action": action, "pose": proprio[..., :pose], "camera": proprio[..., pose:]}
        tokens = [embed(parts[name]).unsqueeze(2) for name, embed in self.conditions.items()]
        return torch.cat([*tokens, self.embed(z)], dim=2)

    def _table(self, first: int, steps: int, device: torch.device) -> Table:
        """Angles of the steps*(conditions+N) tokens of the frames from ``first`` on."""
        # at row and column 0 nothing turns: a conditioning token has no place in the image
        place = torch.cat([torch.zeros(len(self.conditions), dtype=torch.long), torch.arange(self.tokens)]).to(device)
        frame = torch.arange(first, first + steps, device=device)
        index = (frame[:, None] * self.tokens + place).flatten()
        return rotary_table_3d(index, (first + steps, *self.grid), self.head, tiled=True)

    def _append(self, cache: GrowingCache, z: Tensor, action: Tensor, proprio: Tensor) -> Tensor:
        """Forecasts [B,T,N,D] from T frames that follow those of the cache, which are stored in it."""
        x = self._embed(z, action, proprio)
        steps, tokens = x.shape[1:3]
        table = self._table(cache.time, steps, z.device)
        mask = None
        if steps > 1:
            frame = torch.arange(cache.time + steps, device=z.device).repeat_interleave(tokens)
            mask = frame[cache.time * tokens :, None] >= frame[None, :]
        x = x.flatten(1, 2)
        for layer, block in enumerate(self.blocks):
            x = x + block.attn(
                block.norm1(x),
                mask,
                lambda t: rotate_3d(t, table),
                lambda k, v, layer=layer: cache.store(layer, k, v),
            )
            x = x + block.mlp(block.norm2(x))
        cache.time += steps
        p = self.project(self.final_norm(x.unflatten(1, (steps, tokens))[:, :, tokens - self.tokens :]))
        return layer_norm(p) if self.norm else p

    def _empty(self, pending: Tensor) -> GrowingCache:
        nothing = [pending.new_zeros(len(pending), self.heads, 0, self.head) for _ in self.blocks]
        return GrowingCache(pending, [*nothing], [*nothing])

    def forward(self, z: Tensor, action: Tensor, proprio: Tensor) -> Tensor:
        """z [B,T,N,D], action [B,T,A], proprio [B,T,P] -> p [B,T,N,D], where p[:, t] forecasts z[:, t+1]."""
        return self._append(self._empty(z[:, 0]), z, action, proprio)

    def begin(self, z: Tensor, action: Tensor, proprio: Tensor) -> GrowingCache:
        """The cache after latents [B,T,N,D] and the actions [B,T-1,A] and poses [B,T-1,P] of all but the last."""
        past = z.shape[1] - 1
        assert action.shape[1] == proprio.shape[1] == past, f"{past + 1} latents, {action.shape=}, {proprio.shape=}"
        cache = self._empty(z[:, -1])
        if past:
            self._append(cache, z[:, :-1], action, proprio)
        return cache

    def step(self, cache: GrowingCache, action: Tensor, proprio: Tensor) -> tuple[Tensor, GrowingCache]:
        """The pending frame's action [B,A] and pose [B,P] -> the next latent [B,N,D], now pending, and the cache."""
        after = GrowingCache(cache.pending, [*cache.keys], [*cache.values], cache.time)
        z = self._append(after, cache.pending[:, None], action[:, None], proprio[:, None])[:, 0]
        after.pending = z
        return z, after

