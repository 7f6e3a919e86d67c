"""The attentive probe of V-JEPA (depth 1) and V-JEPA 2 (depth 4): see :mod:`jepa.models.attentive`."""

from __future__ import annotations

from torch import Tensor

from jepa.errors import InputError
from jepa.models.attentive import AttentiveClassifier
from probes.base import Probe


class AttentiveProbe(Probe):
    """A learned query attends over every token of the window. Trained by gradient.

    Args:
        depth: 1 as in V-JEPA, 4 as in V-JEPA 2.
        heads: attention heads; must divide the width of the latents.
        classes: number of classes of the target; 0 means regression.
    """

    def __init__(self, depth: int = 1, heads: int = 4, classes: int = 0) -> None:
        super().__init__(classes)
        if depth < 1 or heads < 1:
            raise InputError(f"depth={depth}, heads={heads}: expected at least 1 of each, give depth 1 or 4")
        self.depth, self.heads = depth, heads

    def build(self, z: Tensor, y: Tensor) -> None:
        dim = z.shape[-1]
        if dim % self.heads:
            raise InputError(f"heads={self.heads} on latents of width {dim}: expected a divisor, change heads")
        self.head = AttentiveClassifier(dim, self.heads, self.depth, self.measure_target(y))

    def forward(self, z: Tensor) -> Tensor:
        out = self.head(z.flatten(1, 2))
        return out if self.classes else self.target.inverse(out)
