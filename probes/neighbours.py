"""k nearest neighbours: what the geometry of the latents holds before anything is trained on it."""

from __future__ import annotations

from typing import ClassVar

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError
from probes.base import Probe, Tokens, flatten, reduced


class NeighbourProbe(Probe):
    """Exact k-NN by cosine similarity; neighbour i weighs ``exp(similarity_i / temperature)``.

    Classes: the weighted vote (scores are log shares, so their softmax is the vote). Regression: the weighted mean.
    Wu et al. 2018 (arXiv:1805.01978), section 3.3, as used by DINO.

    Args:
        k: number of neighbours.
        temperature: the smaller, the more the nearest neighbour decides.
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
        classes: number of classes of the target; 0 means regression.
    """

    closed_form: ClassVar[bool] = True

    def __init__(self, k: int = 20, temperature: float = 0.07, tokens: Tokens = "mean", classes: int = 0) -> None:
        super().__init__(classes)
        if k < 1 or temperature <= 0:
            raise InputError(f"k={k}, temperature={temperature}: expected k >= 1 and temperature > 0, change them")
        self.k, self.temperature, self.tokens = k, temperature, tokens

    def build(self, z: Tensor, y: Tensor) -> None:
        width = flatten(z[:1], self.tokens).shape[1]
        self.register_buffer("bank", torch.zeros(len(y), width))
        self.register_buffer("values", torch.zeros_like(y))
        self._index: faiss.IndexFlatIP | None = None

    def reduce(self, z: Tensor) -> Tensor:
        return reduced(z, self.tokens)

    def fit(self, z: Tensor, y: Tensor) -> None:
        if len(z) < self.k:
            raise InputError(f"k={self.k} neighbours among {len(z)} training examples: lower k or embed more episodes")
        self.bank.copy_(F.normalize(flatten(z, self.tokens), dim=1))
        self.values.copy_(y)
        self._index = None

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self._index = None

    def neighbours(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z [B,T,N,D]`` to similarities ``[B,k]``, best first, and the numbers of the training examples."""
        if self._index is None:
            self._index = faiss.IndexFlatIP(self.bank.shape[1])
            self._index.add(self.bank.cpu().numpy())
        query = F.normalize(flatten(z, self.tokens), dim=1).detach().cpu().numpy()
        similarity, number = self._index.search(query, self.k)
        return torch.from_numpy(similarity).to(z.device), torch.from_numpy(number).to(z.device)

    def forward(self, z: Tensor) -> Tensor:
        similarity, number = self.neighbours(z)
        weight = (similarity / self.temperature).softmax(dim=1)
        value = self.values[number]
        if not self.classes:
            return (weight.unsqueeze(-1) * value).sum(1)
        share = weight.new_zeros(len(z), self.classes).scatter_add_(1, value, weight)
        return share.clamp_min(torch.finfo(share.dtype).tiny).log()
