"""Policy probes: is there enough in the latents to say which action was taken, or which to take?

Small networks on pairs of frozen latents, trained by gradient; and the policy that a cloning probe makes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.schema import Sample, World
from jepa.tasks.features import Pool, pool_tokens
from probes.base import Probe, Reads, Standardise, Tokens, flatten


class PairProbe(Probe):
    """A network of two hidden layers over two latents, concatenated along T: ``z [B,2,N,D]`` to actions ``[B,A]``.

    Args:
        hidden: width of the hidden layers.
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
    """

    def __init__(self, hidden: int = 256, tokens: Tokens = "mean") -> None:
        super().__init__()
        if hidden < 1:
            raise InputError(f"hidden={hidden}: expected at least 1, give the width of the hidden layers")
        self.hidden, self.tokens = hidden, tokens

    def build(self, z: Tensor, y: Tensor) -> None:
        if z.shape[1] != 2:
            raise InputError(f"{type(self).__name__} was given windows of {z.shape[1]} latents: expected pairs")
        x = flatten(z, self.tokens)
        self.features = Standardise(x.shape[1])
        self.features.measure(x)
        self.head = nn.Sequential(
            nn.Linear(x.shape[1], self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, self.measure_target(y)),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.target.inverse(self.head(self.features(flatten(z, self.tokens))))


class InverseDynamicsProbe(PairProbe):
    """Which block of actions led from z_t to z_t+1?"""

    reads: ClassVar[Reads] = "next"


class BehaviourCloning(PairProbe):
    """Which block of actions did the data take at z_t on its way to z_goal, a later frame of the same episode?"""

    reads: ClassVar[Reads] = "goal"


class ClonedPolicy:
    """A fitted cloning probe as a policy: encodes the present and the goal, then acts out one block of actions.

    Args:
        world: encodes frames; must be the world whose features the probe was fitted on.
        probe: a fitted :class:`BehaviourCloning` probe with action as its target, on the world's device.
        pool: how the feature cache pooled the tokens ("none" or "mean").
    """

    def __init__(self, world: World, probe: PairProbe, pool: Pool = "none") -> None:
        self.world, self.probe, self.pool = world, probe.eval(), pool
        width = len(probe.target.mean)
        if width != world.specs.action.width:
            raise InputError(
                f"the probe answers {width} numbers, the world's actions have {world.specs.action.width}: fit the "
                "probe on target action, on features of this world"
            )
        self.device = probe.target.mean.device
        self._queue: Tensor | None = None  # [B,block,a]
        self._left: Tensor | None = None  # int64 [B], actions of the block that are still to be taken

    @torch.no_grad()
    def act(self, sample: Sample) -> Tensor:
        """The present (T=1, with its goal) of B environments -> raw environment actions ``[B,a]``."""
        if sample.video is None or sample.goal is None or sample.goal.video is None:
            raise InputError("a cloned policy was given no video or no goal: expected both, make a task with goals")
        batch, space = len(sample.video), self.world.specs.action
        if self._left is None:
            self._queue = torch.zeros(batch, space.block, space.env_width)
            self._left = torch.zeros(batch, dtype=torch.int64)
        if len(self._left) != batch:
            raise InputError(f"{batch} environments after {len(self._left)}: expected the same, make a new policy")
        empty = self._left == 0
        if empty.any():
            z = torch.cat([self._encode(sample, empty), self._encode(sample.goal, empty)], dim=1)
            block = space.clip(self.probe(z).cpu().float())
            self._queue[empty] = block.unflatten(1, (space.block, space.env_width))
            self._left[empty] = space.block
        action = self._queue[torch.arange(batch), space.block - self._left]
        self._left -= 1
        return action

    def reset(self, done: Tensor) -> None:
        """Drop what is left of the blocks of the environments where ``done [B]`` is true."""
        if self._left is not None:
            self._left[done.cpu()] = 0

    def _encode(self, sample: Sample, which: Tensor) -> Tensor:
        seen = Sample(video=sample.video, proprio=sample.proprio).map(lambda value: value[which.to(value.device)])
        return pool_tokens(self.world.encode(seen.to(self.device)), self.pool).float()
