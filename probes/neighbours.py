"""k nearest neighbours: what the geometry of the latents holds before anything is trained on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError, check_choice
from jepa.retrieval import ProductQuantiser
from probes.base import Probe, Tokens, flatten

Index = Literal["auto", "exact", "ivf"]
Vectors = NDArray[np.float32]
Batches = Iterable[tuple[Tensor, Tensor]]

ROWS = 8192  # examples that are prepared at once
EXACT = 200_000  # examples up to which "auto" compares with each
PIECE = 2**15  # examples that are compared with at once
LEARNT = 64  # examples that the place of each list is learnt from, on average
ROUNDS = 10  # of the clustering
SEED = 0  # of the clustering: a bank is a function of its examples


class NeighbourProbe(Probe):
    """k-NN by cosine similarity; neighbour i weighs ``exp(similarity_i / temperature)``.

    Classes: the weighted vote (scores are log shares, so their softmax is the vote). Regression: the weighted mean.
    Wu et al. 2018 (arXiv:1805.01978), section 3.3, as used by DINO, which publishes k=20 (of 10, 20, 100 and 200 the
    best on ImageNet) and temperature 0.07; Wu et al. k=200 and the same temperature.

    The examples are in memory once: in float32 while these fit into ``memory``, else in float16, else as codes of a
    product quantiser, which are as small as it takes, and approximate. Beyond 200,000 examples they are sorted into
    sqrt(n) lists (an inverted file), of which those nearest to a query are searched.

    Args:
        k: number of neighbours.
        temperature: the smaller, the more the nearest neighbour decides.
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
        classes: number of classes of the target; 0 means regression.
        index: exact compares with every example, ivf with those of some lists, auto with some beyond 200,000.
        searched: share of the lists that is searched.
        memory: GiB that the examples may take; more is more precise. exact needs 2 bytes for each of their numbers.
    """

    closed_form: ClassVar[bool] = True

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        tokens: Tokens = "mean",
        classes: int = 0,
        index: Index = "auto",
        searched: float = 0.1,
        memory: float = 0.25,
    ) -> None:
        super().__init__(classes)
        if k < 1 or temperature <= 0:
            raise InputError(f"k={k}, temperature={temperature}: expected k >= 1 and temperature > 0, change them")
        if not 0 < searched <= 1 or memory <= 0:
            raise InputError(f"searched={searched}, memory={memory}: expected a share in (0, 1] and more than 0 GiB")
        check_choice("index", index, ("auto", "exact", "ivf"))
        self.k, self.temperature, self.tokens = k, temperature, tokens
        self.index, self.searched, self.memory = index, searched, memory

    def build(self, z: Tensor, y: Tensor) -> None:
        n, width = len(y), flatten(z[:1], self.tokens).shape[1]
        form, stored = self._storage(n, width)
        self.register_buffer("bank", torch.zeros(n, stored, dtype=form))
        self.register_buffer("values", torch.zeros_like(y))
        parts = (stored, 256, width // stored) if form == torch.uint8 else (0,)
        self.register_buffer("codebooks", torch.zeros(parts))
        lists = math.isqrt(n) if self.index == "ivf" or (self.index == "auto" and n > EXACT) else 0
        self.register_buffer("places", torch.zeros(lists, width))
        self.register_buffer("bounds", torch.zeros(lists + 1, dtype=torch.int64))

    def _storage(self, n: int, width: int) -> tuple[torch.dtype, int]:
        """How the bank is kept: its type, and how many of these an example takes."""
        room = int(self.memory * 2**30)
        for form in (torch.float32, torch.float16):
            if n * width * form.itemsize <= room:
                return form, width
        codes = [count for count in range(1, width // 8 + 1) if width % count == 0 and n * count <= room]
        if self.index == "exact" or not codes:
            raise InputError(
                f"k-NN among {n} examples of {width} features in {self.memory} GiB: raise memory, set index to auto, "
                "or label a part of them (labelled)"
            )
        return torch.uint8, codes[-1]

    def fit(self, z: Tensor, y: Tensor) -> None:
        self.fit_batches([(z, y)])

    @torch.no_grad()
    def fit_batches(self, batches: Batches) -> None:
        n = len(self.values)
        if n < self.k:
            raise InputError(f"k={self.k} neighbours among {n} training examples: lower k or embed more episodes")
        place = np.arange(n)
        if len(self.places) or len(self.codebooks):
            some = self._some(batches, n)
            if len(self.codebooks):
                self.codebooks.copy_(torch.from_numpy(ProductQuantiser.train(some, len(self.codebooks)).codebooks))
            if len(self.places):
                place = self._sorted(batches, some)
        start = 0
        for x, y in self._rows(batches):
            where = torch.from_numpy(place[start : start + len(y)])
            self.bank[where] = self._stored(x).to(self.bank.device)
            self.values[where] = y.to(self.values.device)
            start += len(y)

    def _rows(self, batches: Batches) -> Iterator[tuple[Vectors, Tensor]]:
        return (
            (self._unit(part), label)
            for z, y in batches
            for part, label in zip(z.split(ROWS), y.split(ROWS))
        )

    def _unit(self, z: Tensor) -> Vectors:
        return F.normalize(flatten(z.float(), self.tokens), dim=1).detach().cpu().contiguous().numpy()

    def _some(self, batches: Batches, n: int) -> Vectors:
        """Examples that the lists and the codes are learnt from, drawn evenly, in their order."""
        count = min(n, LEARNT * max(len(self.places), 256))
        chosen = np.sort(np.random.default_rng(SEED).choice(n, count, replace=False))
        parts, start = [], 0
        for x, y in self._rows(batches):
            parts.append(x[chosen[(chosen >= start) & (chosen < start + len(y))] - start])
            start += len(y)
        return np.concatenate(parts)

    def _sorted(self, batches: Batches, some: Vectors) -> NDArray[np.int64]:
        """Place the lists, and say where in the bank every example goes, so that a list lies in one piece."""
        clusters = faiss.Kmeans(some.shape[1], len(self.places), niter=ROUNDS, seed=SEED, spherical=True)
        clusters.train(some)
        self.places.copy_(torch.from_numpy(clusters.centroids))
        home = np.concatenate([_nearest(x, clusters.centroids, 1)[1][:, 0] for x, _ in self._rows(batches)])
        self.bounds[1:] = torch.from_numpy(np.bincount(home, minlength=len(self.places)).cumsum())
        place = np.empty(len(home), dtype=np.int64)
        place[np.argsort(home, kind="stable")] = np.arange(len(home))
        return place

    def _stored(self, x: Vectors) -> Tensor:
        if len(self.codebooks):
            return torch.from_numpy(ProductQuantiser(self.codebooks.cpu().numpy()).encode(x))
        return torch.from_numpy(x).to(self.bank.dtype)

    def _vectors(self, start: int, end: int) -> Vectors:
        """float32 [n,width] of a piece of the bank."""
        stored = self.bank[start:end].cpu()
        if len(self.codebooks):
            return ProductQuantiser(self.codebooks.cpu().numpy()).decode(stored.numpy())
        return stored.float().numpy()

    def neighbours(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z [B,T,N,D]`` to similarities ``[B,k]``, best first, and places in the bank: of an exact search, the
        numbers of the training examples."""
        query = self._unit(z)
        similarity = np.full((len(query), self.k), -np.inf, dtype=np.float32)
        number = np.zeros((len(query), self.k), dtype=np.int64)
        everyone = np.arange(len(query))
        if len(self.places):
            self._visit(query, self._lists(query), similarity, number)
            everyone = np.flatnonzero(np.isinf(similarity[:, -1]))  # whose lists hold fewer than k: they search all
            similarity[everyone] = -np.inf
        self._visit(query, [(0, len(self.bank), everyone)] if len(everyone) else [], similarity, number)
        return torch.from_numpy(similarity).to(z.device), torch.from_numpy(number).to(z.device)

    def _lists(self, query: Vectors) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Every list that is nearest to some query: where it lies in the bank, and the numbers of those queries."""
        count = max(1, round(self.searched * len(self.places)))
        chosen = _nearest(query, self.places.cpu().numpy(), count)[1].ravel()
        order = np.argsort(chosen, kind="stable")
        numbers, first = np.unique(chosen[order], return_index=True)
        for number, members in zip(numbers.tolist(), np.split(order // count, first[1:])):
            yield int(self.bounds[number]), int(self.bounds[number + 1]), members

    def _visit(
        self,
        query: Vectors,
        visits: Iterable[tuple[int, int, NDArray[np.int64]]],
        similarity: Vectors,
        number: NDArray[np.int64],
    ) -> None:
        """Compare queries with pieces of the bank, and keep the k best of each so far."""
        for begin, end, members in visits:
            for start in range(begin, end, PIECE):
                piece = self._vectors(start, min(start + PIECE, end))
                found, place = _nearest(query[members], piece, min(self.k, len(piece)))
                both = np.concatenate([similarity[members], found], axis=1)
                where = np.concatenate([number[members], place + start], axis=1)
                best = np.argsort(-both, axis=1, kind="stable")[:, : self.k]
                similarity[members] = np.take_along_axis(both, best, 1)
                number[members] = np.take_along_axis(where, best, 1)

    def forward(self, z: Tensor) -> Tensor:
        similarity, number = self.neighbours(z)
        weight = (similarity / self.temperature).softmax(dim=1)
        value = self.values[number]
        if not self.classes:
            return (weight.unsqueeze(-1) * value).sum(1)
        share = weight.new_zeros(len(z), self.classes).scatter_add_(1, value, weight)
        return share.clamp_min(torch.finfo(share.dtype).tiny).log()


def _nearest(query: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """The k largest inner products of every query, and which vectors they are with."""
    return faiss.knn(query, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
