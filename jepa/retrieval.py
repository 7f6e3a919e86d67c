"""See what a model imagines without a pixel decoder: the nearest real frame of every imagined latent.

And what else faiss does for latents: :class:`ProductQuantiser` packs the tokens of a feature cache into a few bytes.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.files import replacing

FORMAT, VERSION = "jepa-frames", 1
SEED = 0  # of the clustering, so that an index is a function of its frames, and codebooks of what they learn from
CENTROIDS = 256  # what a byte can number


class FrameIndex:
    """An index over the latents of real frames, by Euclidean distance.

    Exact up to ``exact`` frames; beyond, an inverted file: sqrt(n) clusters, of which the nearest are searched.

    Args:
        tokens: "flat" compares all tokens of a frame place by place, "mean" their average.
        exact: frames up to which the search is exact.
        searched: share of the clusters that is searched beyond.
    """

    def __init__(self, tokens: Literal["flat", "mean"] = "flat", exact: int = 100_000, searched: float = 0.1) -> None:
        if not 0 < searched <= 1 or exact < 1:
            raise InputError(f"searched={searched}, exact={exact}: expected a share in (0, 1] and at least 1 frame")
        self.tokens, self.exact, self.searched = tokens, exact, searched
        self._index: faiss.Index | None = None
        self._frames = np.empty((0, 2), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, z: Tensor, frames: Tensor) -> FrameIndex:
        """Add latents ``z [n,N,D]`` of the frames ``[n,2]`` (episode, frame); returns itself."""
        vectors, ids = self._vectors(z), frames.detach().cpu().numpy().astype(np.int64)
        if z.ndim != 3 or ids.shape != (len(vectors), 2):
            raise InputError(f"latents {tuple(z.shape)} of frames {ids.shape}: expected [n,N,D] and [n,2]")
        if self._index is None:
            self._index = faiss.IndexFlatL2(vectors.shape[1])
        self._index.add(vectors)
        self._frames = np.concatenate([self._frames, ids])
        if isinstance(self._index, faiss.IndexFlatL2) and len(self) > self.exact:
            self._index = self._clustered(self._index.reconstruct_n(0, len(self)))
        return self

    def search(self, z: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """``z [...,N,D]`` to the k nearest frames ``int64 [...,k,2]`` and distances ``[...,k]``, nearest first."""
        if not 1 <= k <= len(self):
            raise InputError(f"k={k} nearest of {len(self)} frames: expected 1 to {len(self)}, lower k or add frames")
        square, number = self._index.search(self._vectors(z), k)
        if (number < 0).any():
            raise InputError(f"fewer than k={k} frames in the clusters searched: lower k or raise searched")
        places = (*z.shape[:-2], k)
        frames = torch.from_numpy(self._frames[number]).reshape(*places, 2)
        return frames, torch.from_numpy(np.sqrt(np.maximum(square, 0))).reshape(places)

    def storyboard(self, imagined: Tensor) -> list[tuple[int, int]]:
        """The real frame nearest to every step of a dream ``[H,N,D]``: (episode, frame) each."""
        frames, _ = self.search(imagined)
        return [(int(episode), int(frame)) for episode, frame in frames[:, 0]]

    def save(self, path: Path) -> None:
        """Write one ``.npz`` file, complete or not at all."""
        if self._index is None:
            raise InputError("an empty frame index has nothing to save: add frames first")
        path = Path(path)
        settings = {"tokens": self.tokens, "exact": self.exact, "searched": self.searched}
        meta = json.dumps({"format": FORMAT, "version": VERSION, **settings})
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, meta=np.array(meta), frames=self._frames, index=faiss.serialize_index(self._index))

    @classmethod
    def load(cls, path: Path) -> FrameIndex:
        """Read what :meth:`save` wrote."""
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is not a frame index, or is missing or truncated: build it again")
        try:
            with np.load(path, allow_pickle=False) as file:
                meta, frames, data = json.loads(str(file["meta"])), file["frames"], file["index"]
            found = (meta.pop("format", None), meta.pop("version", None))
            index = faiss.deserialize_index(data) if found == (FORMAT, VERSION) else None
        except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path} is not a frame index ({reason}): build it again") from error
        if index is None:
            raise InputError(f"{path} is of format {found}, expected {(FORMAT, VERSION)}: build the index again")
        if index.ntotal != len(frames):
            raise InputError(f"{path} holds {index.ntotal} latents of {len(frames)} frames: build it again")
        loaded = cls(**meta)
        loaded._index, loaded._frames = index, frames
        return loaded

    def _vectors(self, z: Tensor) -> np.ndarray:
        """``z [...,N,D]`` to contiguous float32 rows."""
        z = z.detach().float()
        flat = (z.mean(-2) if self.tokens == "mean" else z.flatten(-2)).cpu()
        rows = flat.reshape(-1, flat.shape[-1]).contiguous().numpy()
        if not np.isfinite(rows).all():
            raise InputError("a latent holds NaN or infinity: it has no neighbours, check the checkpoint")
        if self._index is not None and rows.shape[1] != self._index.d:
            raise InputError(f"latents of {rows.shape[1]} numbers in an index of {self._index.d}: use one encoder")
        return rows

    def _clustered(self, vectors: np.ndarray) -> faiss.Index:
        clusters = math.isqrt(len(vectors))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(vectors.shape[1]), vectors.shape[1], clusters, faiss.METRIC_L2)
        index.cp.seed = SEED
        index.train(vectors)
        index.add(vectors)
        index.nprobe = max(1, round(self.searched * clusters))
        return index


class ProductQuantiser:
    """Vectors of D numbers as M bytes: each of M equal parts of a vector by its nearest of 256 centroids.

    Product quantisation (Jegou et al. 2011). The codebooks alone decode, by looking the centroids up.

    Args:
        codebooks: the centroids of every part, float32 [M,256,D/M].
    """

    def __init__(self, codebooks: np.ndarray) -> None:
        parts, _, width = codebooks.shape
        self.codebooks = np.ascontiguousarray(codebooks, dtype=np.float32)
        self._faiss = faiss.ProductQuantizer(parts * width, parts, 8)
        faiss.copy_array_to_vector(self.codebooks.ravel(), self._faiss.centroids)

    @classmethod
    def train(cls, vectors: np.ndarray, parts: int) -> ProductQuantiser:
        """Codebooks of M = ``parts`` parts for vectors like these ``[n,D]``, by k-means; always the same ones.

        Raises:
            InputError: D is no multiple of the parts, there are fewer vectors than centroids, or one is not finite.
        """
        count, width = vectors.shape
        if parts < 1 or width % parts:
            fits = ", ".join(str(m) for m in range(1, width + 1) if width % m == 0)
            raise InputError(f"quantise={parts} bytes for {width} numbers: expected a divisor, one of {fits}")
        if count < CENTROIDS:
            raise InputError(f"quantise has {count} tokens to learn from, expected {CENTROIDS} or more: leave it out")
        if not np.isfinite(vectors).all():
            raise InputError("quantise was given a latent with NaN or infinity: check the checkpoint")
        made = faiss.ProductQuantizer(width, parts, 8)
        made.cp.seed = SEED
        made.cp.min_points_per_centroid = 1  # fewer than it likes are reported by the error that is measured
        made.train(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(faiss.vector_to_array(made.centroids).reshape(parts, CENTROIDS, -1))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """``[n,D]`` to uint8 ``[n,M]``."""
        return self._faiss.compute_codes(np.ascontiguousarray(vectors, dtype=np.float32))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """uint8 ``[n,M]`` to float32 ``[n,D]``."""
        return self._faiss.decode(np.ascontiguousarray(codes))

    def error(self, vectors: np.ndarray) -> float:
        """Share of the variance of ``[n,D]`` that coding loses: 0 where decoding gives them back."""
        vectors = np.asarray(vectors, dtype=np.float64)
        lost, spread = vectors - self.decode(self.encode(vectors)), vectors - vectors.mean(0)
        return float((lost**2).sum() / max((spread**2).sum(), np.finfo(np.float64).tiny))
