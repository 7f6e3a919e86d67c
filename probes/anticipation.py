"""Anticipation: which action comes next, from the latents of what was seen before it and of what lies ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError, check_choice
from jepa.models.attentive import ActionAnticipator
from probes import recall
from probes.attentive import KEPT
from probes.base import Probe
from probes.score import Answers, Scored

Criterion = Literal["focal", "cross_entropy"]
PUBLISHED = ("verb", "noun", "action")  # names of the layers of published weights, which fit


def focal(scores: Tensor, y: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017) of ``scores [n,C]`` for class numbers ``y [n]``: the sum over classes,
    averaged over examples. A number that is no class has no positive."""
    positive = y[:, None] == torch.arange(scores.shape[1], device=y.device)
    signed = torch.where(positive, scores, -scores)  # the score of what is true
    weight = torch.where(positive, alpha, 1 - alpha) * (-signed).sigmoid() ** gamma
    return -(weight * F.logsigmoid(signed)).sum(1).mean()


class AnticipationProbe(Probe):
    """The attentive probe of V-JEPA 2 for actions: a learned query and a linear layer for each answer.

    Reads all tokens, of the clip and of the forecast (:class:`jepa.models.anticipating.Anticipating`). Targets are
    class numbers, a column for each answer: ``target=verb,noun,action``. Those that come after the classes of the
    training cannot be answered, and count as mistakes. Trained by gradient; the losses of the answers are summed.

    Args:
        depth: blocks; 4 as published.
        heads: attention heads; must divide the width of the latents. 16 as published.
        criterion: "focal", the sigmoid focal loss as published, or "cross_entropy".
        alpha: weight of the right class in the focal loss; 1 - alpha is that of the others.
        gamma: how little the focal loss weighs what is easy.
        sizes: how many classes each answer has in training; counted in the targets if null.
    """

    def __init__(
        self,
        depth: int = 4,
        heads: int = 16,
        criterion: Criterion = "focal",
        alpha: float = 0.25,
        gamma: float = 2.0,
        sizes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or not 0 <= alpha <= 1 or gamma < 0:
            raise InputError(
                f"depth={depth}, heads={heads}, alpha={alpha}, gamma={gamma}: expected depth and heads of 1 or more, "
                "alpha from 0 to 1 and gamma of 0 or more"
            )
        self.criterion = check_choice("criterion", criterion, get_args(Criterion))
        self.depth, self.heads, self.alpha, self.gamma = depth, heads, alpha, gamma
        self.sizes = sizes

    def build(self, z: Tensor, y: Tensor) -> None:
        dim, known = z.shape[-1], _checked(y).amax(0) + 1
        if dim % self.heads:
            raise InputError(f"heads={self.heads} on latents of width {dim}: expected a divisor, change heads")
        sizes = known.tolist() if self.sizes is None else list(self.sizes)
        if len(sizes) != len(known) or (known > torch.tensor(sizes)).any():
            raise InputError(
                f"sizes={sizes} for targets of up to {known.tolist()} classes: give a number for each answer, as large "
                "as that, or null"
            )
        self.sizes = sizes
        names = PUBLISHED if len(sizes) == len(PUBLISHED) else map(str, range(len(sizes)))
        self.head = ActionAnticipator(dim, self.heads, self.depth, dict(zip(names, sizes)))

    def forward(self, z: Tensor) -> Tensor:
        """``z [B,T,N,D]`` to the scores of all answers side by side, ``[B, sum of their classes]``."""
        return torch.cat([*self.head(z.flatten(1, 2)).values()], dim=1)

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The sum over the answers; what is averaged is averaged over examples."""
        parts = zip(prediction.split(self.sizes, dim=1), y.long().unbind(1))
        return torch.stack([self._loss(scores, column) for scores, column in parts]).sum()

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        if self.criterion == "focal":
            return focal(scores, y, self.alpha, self.gamma)
        known = torch.where(y < scores.shape[1], y, -100)  # what torch leaves out
        return F.cross_entropy(scores, known, ignore_index=-100, reduction="sum") / len(y)

    def footprint(self, z: Tensor) -> int:
        """What the blocks made of each token, and the queries of all."""
        tokens, width = z.shape[1] * z.shape[2], z.shape[3]
        of_token = (self.depth - 1) * KEPT * width + 2 * self.heads * len(self.sizes)
        return 4 * (tokens * of_token + len(self.sizes) * KEPT * width + 4 * sum(self.sizes))

    def typical(self, y: Tensor) -> Tensor:
        return recall.common(y.long(), self.sizes)

    def point(self, answers: Answers) -> float:
        return recall.point(answers)

    def scored(self, answers: Sequence[Answers], seed: int = 0) -> Scored:
        return recall.recall(answers, seed)


def _checked(y: Tensor) -> Tensor:
    """Targets ``[n,K]`` as int64, once they are known to be class numbers."""
    numbers = y.round().long()
    if y.ndim != 2 or not torch.equal(numbers.to(y.dtype), y) or numbers.min() < 0:
        raise InputError("a target of the anticipation is no class number: expected whole numbers from 0, check target")
    return numbers
