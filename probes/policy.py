"""Policy probes: is there enough in the latents to say which action was taken, or which to take?

Small networks on one or two frozen latents, trained by gradient. :mod:`probes.acting` lets them act.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from probes.base import Probe, Reads, Standardise, Tokens, flatten

SOME = 20_000  # actions that are looked at to find their modes


class ActionProbe(Probe):
    """A network of two hidden layers from latents ``z [B,T,N,D]`` to blocks of actions ``[B,A]``.

    It reads z_t, standardised, and where there is a second latent by how much that differs from z_t.

    With ``modes``, the actions of the data are gathered into clusters, and the network says which cluster is due and
    how far from its centre (Behavior Transformers, Shafiullah et al. 2022, arXiv:2206.11251, without the transformer).
    It acts by the most probable one: where the data does now this and now that, the mean is neither. Scores are of the
    mean, as without modes.

    Args:
        hidden: width of the hidden layers.
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
        modes: number of clusters of actions; 0 for least squares, whose policy is the mean action.
    """

    def __init__(self, hidden: int = 256, tokens: Tokens = "mean", modes: int = 0) -> None:
        super().__init__()
        if hidden < 1 or modes < 0:
            raise InputError(f"hidden={hidden}, modes={modes}: expected hidden >= 1 and modes >= 0, change them")
        self.hidden, self.tokens, self.modes = hidden, tokens, modes

    @property
    def frames(self) -> int:
        """T, how many latents it reads."""
        return 1 if self.reads == "frame" else 2

    def build(self, z: Tensor, y: Tensor) -> None:
        if z.shape[1] != self.frames:
            wants = "pairs" if self.frames == 2 else "single latents"
            raise InputError(f"{type(self).__name__} was given windows of {z.shape[1]} latents: expected {wants}")
        x = flatten(z.flatten(0, 1).unsqueeze(1), self.tokens)
        self.features = Standardise(x.shape[1])
        self.features.measure(x)
        width = self.measure_target(y)
        if self.modes:
            self.register_buffer("centres", cluster(self.target(y[:: 1 + len(y) // SOME]), self.modes))
        self.head = network(self.frames * x.shape[1], self.hidden, self.modes + max(1, self.modes) * width)

    def forward(self, z: Tensor) -> Tensor:
        """Actions ``[B,A]``; with modes K, the scores of the clusters and K offsets ``[B,K+K*A]``, for the loss."""
        out = self.head(relative(z, self.features, self.tokens).flatten(1))
        return out if self.modes else self.target.inverse(out)

    def answer(self, prediction: Tensor) -> Tensor:
        """The mean block of actions ``[B,A]``, in raw units."""
        if not self.modes:
            return prediction
        scores, offsets = self._parts(prediction)
        share = scores.softmax(1).unsqueeze(2)
        return self.target.inverse((share * (self.centres + offsets)).sum(1))

    def decide(self, prediction: Tensor) -> Tensor:
        """The block of actions ``[B,A]`` to take, in raw units: the most probable one where there are modes."""
        if not self.modes:
            return prediction
        scores, offsets = self._parts(prediction)
        best = scores.argmax(1)
        return self.target.inverse(self.centres[best] + offsets[torch.arange(len(best), device=best.device), best])

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The squared error in units of the actions' variance; with modes, that of the nearest cluster's offset and
        the cross entropy of the clusters."""
        if not self.modes:
            return super().loss(prediction, y)
        scores, offsets = self._parts(prediction)
        y = self.target(y)
        nearest = torch.cdist(y, self.centres).argmin(1)
        offset = offsets[torch.arange(len(y), device=y.device), nearest]
        return F.cross_entropy(scores, nearest) + F.mse_loss(self.centres[nearest] + offset, y)

    def _parts(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[B,K]`` of the clusters and offsets ``[B,K,A]`` from their centres."""
        return prediction[:, : self.modes], prediction[:, self.modes :].unflatten(1, (self.modes, -1))

    def aim(self, z: Tensor, goal: Tensor) -> Tensor:
        """The present and the goal ``[B,1,N,D]`` to the window ``[B,T,N,D]`` that says what to do."""
        return torch.cat([z, goal], dim=1)[:, : self.frames]

    def act(self, z: Tensor, goal: Tensor) -> Tensor:
        """The present and the goal ``[B,1,N,D]`` to the next block of actions ``[B,A]``, in raw units."""
        return self.decide(self(self.aim(z, goal)))


class BehaviourCloning(ActionProbe):
    """Which block of actions does the data take at z_t? As a policy it behaves like the data and knows no goal."""

    reads: ClassVar[Reads] = "frame"


class GoalCloning(ActionProbe):
    """Which block of actions did the data take at z_t on its way to z_goal, a later frame of the same episode?

    Goals in hindsight make a policy of data without goals (Ghosh et al. 2021, arXiv:1912.06088), for goals as far as
    ``reach`` in training.
    """

    reads: ClassVar[Reads] = "goal"


class InverseDynamicsProbe(ActionProbe):
    """Which block of actions led from z_t to z_t+1?

    As a policy it asks what leads straight towards the goal, to a point as far from z_t as the data comes in one step:
    what a goal beyond the next step needs is not in its data.
    """

    reads: ClassVar[Reads] = "next"

    def build(self, z: Tensor, y: Tensor) -> None:
        super().build(z, y)
        self.register_buffer("step", relative(z, self.features, self.tokens)[:, 1].norm(dim=1).mean())

    def aim(self, z: Tensor, goal: Tensor) -> Tensor:
        distance = relative(torch.cat([z, goal], dim=1), self.features, self.tokens)[:, 1].norm(dim=1)
        share = (self.step / distance.clamp_min(1e-6)).clamp(max=1)
        return torch.cat([z, z + (goal - z) * share[:, None, None, None]], dim=1)


def relative(z: Tensor, features: Standardise, tokens: Tokens) -> Tensor:
    """``z [B,T,N,D]`` to ``[B,T,F]``: the first latent standardised, the others as differences from it."""
    x = features(flatten(z.flatten(0, 1).unsqueeze(1), tokens)).unflatten(0, z.shape[:2])
    return torch.cat([x[:, :1], x[:, 1:] - x[:, :1]], dim=1)


def network(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of ``hidden`` units."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )


def cluster(y: Tensor, count: int, rounds: int = 50) -> Tensor:
    """Centres ``[count,K]`` of ``y [n,K]``: k-means by Lloyd's rounds from random examples; an empty one stays."""
    if len(y) < count:
        raise InputError(f"modes={count} among {len(y)} training examples: lower modes or embed more episodes")
    centres = y[torch.randperm(len(y))[:count].to(y.device)].clone()
    nearest = None
    for _ in range(rounds):
        before, nearest = nearest, torch.cdist(y, centres).argmin(1)
        if before is not None and torch.equal(before, nearest):
            break
        sums = torch.zeros_like(centres).index_add_(0, nearest, y)
        counts = nearest.bincount(minlength=count)
        centres[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
    return centres
