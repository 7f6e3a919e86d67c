"""Planning the published way, as plain as its description: what the plans of the library are measured against.

Nothing here is used by the library. The layers and their weights are ours; the structure is the published one.

* LeWM's cost encodes the frame and the goal at every iteration of the search. At every step of a rollout it embeds all
  actions so far and computes the whole window anew, with the output's projector for all of its frames. The search waits
  for the costs of every iteration. Its successor in stable-worldmodel encodes and embeds once and does the rest alike.
* V-JEPA 2-AC computes all frames anew at every step of a rollout, for every candidate, under a dense mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.models.lewm import DoubleNormBlock
from jepa.models.vjepa2_ac import PosePredictor
from jepa.models.world import WorldModel
from jepa.schema import Sample

Seen = Callable[[int, Tensor], object]  # told the number of an iteration and the places of its elites [E]


class PublishedLeWM:
    """The cost and the search of LeWM for one environment.

    Args:
        world: a ClassTokenViT and a WindowPredictor, in evaluation mode.
        once: as the successor has it: frames are encoded once for each plan, and actions embedded once for each cost.
    """

    def __init__(self, world: WorldModel, once: bool = False) -> None:
        self.world, self.predictor, self.once = world, world.predictor, once

    @torch.inference_mode()
    def plan(self, frame: Tensor, goal: Tensor, noise: Tensor, elites: int, seen: Seen | None = None) -> Tensor:
        """uint8 frames [1,1,C,H,W], noise [I,S-1,H,A] -> the normalised plan [H,A]: I iterations of CEM."""
        mean = torch.zeros_like(noise[0, 0])
        std = torch.ones_like(mean)
        latents = self._encoded(frame, goal)
        for number, part in enumerate(noise):
            candidates = torch.cat([mean[None], mean + std * part])
            cost = self.cost(*(latents if self.once else self._encoded(frame, goal)), candidates)
            best = cost.topk(elites, largest=False).indices
            mean, std = candidates[best].mean(0), candidates[best].std(0)
            cost.cpu().tolist()  # it is logged
            if seen is not None:
                seen(number, best)
        return mean

    def _encoded(self, *frames: Tensor) -> tuple[Tensor, ...]:
        """uint8 [1,1,C,H,W] each -> latents [1,D] each"""
        return tuple(self.world.encode(Sample(video=frame))[:, 0, 0] for frame in frames)

    def cost(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        """Latents [1,D] of the present and the goal, normalised candidates [S,H,A] -> costs [S]."""
        window = self.predictor.window
        path = z.repeat(len(action), 1).unsqueeze(1)
        embedded = self.predictor.condition(action) if self.once else None
        for step in range(1, action.shape[1] + 1):
            conditions = self.predictor.condition(action[:, :step]) if embedded is None else embedded[:, :step]
            forecasts = self._forecast(path[:, -window:], conditions[:, -window:])
            path = torch.cat([path, forecasts[:, -1:]], dim=1)
        return (path[:, -1] - goal.repeat(len(action), 1)).square().sum(-1)

    def _forecast(self, z: Tensor, conditions: Tensor) -> Tensor:
        """A window [S,L,D] and its embedded actions [S,L,width] -> what follows each of its frames, [S,L,D]."""
        x = self.predictor.embed(z) + self.predictor.position[:, : z.shape[1]]
        for block in self.predictor.blocks:
            x = _block(block, x, conditions)
        return self.predictor.projector(self.predictor.final_norm(x).flatten(0, 1)).view(z.shape)


def _block(block: DoubleNormBlock, x: Tensor, condition: Tensor) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition).chunk(6, dim=-1)
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
    q, k, v = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in _qkv(block, y))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + gate1 * block.proj(y.transpose(1, 2).flatten(2))
    return x + gate2 * block.mlp(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2)


def _qkv(block: DoubleNormBlock, x: Tensor) -> tuple[Tensor, ...]:
    return block.qkv(block.attn_norm(x)).chunk(3, dim=-1)


@torch.inference_mode()
def recomputed(predictor: PosePredictor, z: Tensor, action: Tensor, pose: Tensor) -> Tensor:
    """V-JEPA 2-AC's rollout: a latent [1,N,D], candidates [S,H,A] and their poses [S,H,P] -> forecasts [S,H,N,D]."""
    path = z.repeat(len(action), 1, 1).unsqueeze(1)
    for step in range(1, action.shape[1] + 1):
        forecasts = predictor(path, action[:, :step], pose[:, :step])
        path = torch.cat([path, forecasts[:, -1:]], dim=1)
    return path[:, 1:]
