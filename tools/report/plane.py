"""Principal components, in two dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np


def principal_plane(latents: Any, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Project latents ``[n,...]`` on their first two principal components: points ``[n,2]``, explained fraction.

    The plane is turned or mirrored within itself (orthogonal Procrustes) to lie like ``target [n,2]``, since the
    components' own directions mean nothing; neither distances nor what the plane holds change by that.
    """
    flat = np.asarray(latents, dtype=np.float64).reshape(len(latents), -1)
    assert len(flat) == len(target) >= 2 and flat.shape[1] >= 2, (flat.shape, target.shape)
    assert np.isfinite(flat).all(), f"{(~np.isfinite(flat)).sum()} latent values are not finite"
    u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    points = u[:, :2] * s[:2]
    total = float(np.square(s).sum())
    explained = float(np.square(s[:2]).sum()) / total if total > 0 else 0.0
    left, _, right = np.linalg.svd(points.T @ (target - target.mean(axis=0)))
    return points @ left @ right, explained
