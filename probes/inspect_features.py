"""The verb ``jepa inspect features``: how much of their room do the latents of a feature cache use, and for what?"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.files import write_atomically
from jepa.metrics import Moments, effective_ranks, linear_cka, spectrum, squared_norms
from jepa.tasks.inspect_video import table
from probes.cache import FeatureCache
from probes.neighbour_picture import nearest, picture
from probes.pooled import Pooled
from probes.protocol import check_same_data
from probes.report import check_writable
from probes.spectrum_figure import spectrum_figure

log = logging.getLogger(__name__)

WIDEST = 8192  # dimensions whose covariance is 0.5 GiB
DEAD = 1e-3  # of the mean spread: a dimension below holds nothing
SHOWN = 10  # variances that the table names


class Features(dict[str, Any]):
    """All numbers of the features; as text, a table."""

    def __str__(self) -> str:
        ranks = ("rankme", "rankme_uncentred", "entropy_rank", "participation_ratio")
        facts: dict[str, Any] = {"rows": f"{self['rows']:,} {self['row']}", "vector": self["vector"]}
        facts |= {name.replace("_", " "): f"{self[name]:.2f} of {self['width']}" for name in ranks}
        largest = ", ".join(f"{share:.3f}" for share in self["variance_shares"][:SHOWN])
        facts[f"share of the first {SHOWN} axes"] = f"{sum(self['variance_shares'][:SHOWN]):.3f} ({largest})"
        for name in ("mean", "std", "norm"):
            facts[f"{name} of a {'row' if name == 'norm' else 'dimension'}"] = _spread(self[name])
        facts |= {"dead dimensions": self["dead"], "mean cosine": f"{self['cosine']:.4f}"}
        if "cka" in self:
            known = [f"{self[name]:.4f}" if self[name] is not None else "none" for name in ("cka", "cka_debiased")]
            facts[f"linear CKA with {self['against']}"] = f"{known[0]} (debiased {known[1]})"
        return table(f"features of {self['cache']}", facts | self["written"])


def inspect_features(
    cache: Path,
    against: Path | None = None,
    out: Path | None = None,
    layer: int = -1,
    queries: int = 8,
    neighbours: int = 6,
    source: Path | None = None,
) -> Features:
    """Say what the latents of a feature cache are like, and how like those of another cache.

    That is effective ranks, the spectrum of their variance, dead dimensions, nearest neighbours as a picture, and
    linear CKA.

    Rows are read in batches: memory grows with the width of the latents, not with their number. Two checkpoints are
    compared by a cache of each over the same data.

    Args:
        cache: folder that ``jepa embed`` wrote.
        against: a second cache of the same data, e.g. of another checkpoint.
        out: folder for features.json, spectrum.svg and neighbours.png; nothing is written if null.
        layer: of a cache of several layers, by its place among them.
        queries: rows of the picture: frames or clips, evenly spread over the cache.
        neighbours: of each, the nearest by cosine, each from another episode.
        source: where the data of the cache lies now, if not where it was embedded from.
    """
    if queries < 1 or neighbours < 1:
        raise InputError(f"queries={queries}, neighbours={neighbours}: expected at least 1 of each")
    if out is not None:
        check_writable(Path(out))
    mine = Pooled(FeatureCache(cache), layer)
    if len(mine) < 4 or mine.width > WIDEST:
        raise InputError(f"{cache} holds {len(mine)} rows of {mine.width}: expected at least 4, of at most {WIDEST}")
    told, variances = _measured(mine)
    told["cache"], lines = str(cache), {str(cache): variances}
    if against is not None:
        theirs = Pooled(FeatureCache(against), layer)
        told |= {"against": str(against), **_likeness(mine, theirs)}
        lines[str(against)] = _measured(theirs)[1]
    told["written"] = {}
    if out is not None:
        told["written"] = _write(out, mine, told, lines, (queries, neighbours), source)
    return Features(told)


def _measured(pooled: Pooled) -> tuple[dict[str, Any], Tensor]:
    """What a cache's vectors are like, and their variances along the principal axes."""
    moments, lengths = Moments(pooled.width), Moments(1)
    directions, count = torch.zeros(pooled.width, dtype=torch.float64), len(pooled)
    lowest, highest = float("inf"), 0.0
    for _, rows in pooled:
        norm = rows.norm(dim=1)
        moments.add(rows)
        lengths.add(norm[:, None])
        directions += F.normalize(rows, dim=1).double().sum(0)
        lowest, highest = min(lowest, float(norm.min())), max(highest, float(norm.max()))
    covariance, std = moments.covariance, moments.std
    variances = spectrum(covariance)
    uncentred = effective_ranks(spectrum(covariance + torch.outer(moments.mean, moments.mean)))
    told = {
        "rows": count,
        "row": "clips" if "files" in pooled.cache.meta else "frames",
        "vector": _vector(pooled),
        "width": pooled.width,
        **effective_ranks(variances),
        "rankme_uncentred": uncentred["rankme"],  # as published
        "variance_shares": _shares(variances).tolist(),
        "mean": _range(moments.mean),
        "std": _range(std),
        "norm": {"mean": float(lengths.mean), "std": float(lengths.std), "lowest": lowest, "highest": highest},
        "dead": int((std <= DEAD * std.mean()).sum()),
        "cosine": float((directions.square().sum() - count) / (count * (count - 1))),
    }
    return told, variances


def _shares(variances: Tensor) -> Tensor:
    """Of their sum; zeros where nothing varies."""
    return variances / variances.sum().clamp_min(torch.finfo(variances.dtype).tiny)


def _vector(pooled: Pooled) -> str:
    of = f" of layer {pooled.cache.meta['layers'][pooled.layer]}" if pooled.layers > 1 else ""
    tokens = f"the mean of {pooled.tokens} tokens{of}" if pooled.tokens > 1 else f"one token{of}"
    return f"{pooled.width} wide, {tokens}"


def _range(values: Tensor) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }


def _spread(part: dict[str, float]) -> str:
    return f"{part['mean']:.4g} +- {part['std']:.3g}, from {part['lowest']:.4g} to {part['highest']:.4g}"


def _likeness(mine: Pooled, theirs: Pooled) -> dict[str, float | None]:
    """Linear CKA, plain and debiased, over the rows of both, which are the same."""
    check_same_data("the cache", [theirs.cache], mine.cache)
    if mine.width + theirs.width > WIDEST:
        raise InputError(f"features of {mine.width} and {theirs.width}: expected at most {WIDEST} together")
    joint = Moments(mine.width + theirs.width)
    for pair in _together(mine, theirs):
        joint.add(torch.cat(pair, dim=1))
    norms = squared_norms(_together(mine, theirs), joint)
    return {"cka": linear_cka(joint, mine.width), "cka_debiased": linear_cka(joint, mine.width, norms)}


def _together(mine: Pooled, theirs: Pooled) -> Iterator[tuple[Tensor, Tensor]]:
    for start, rows in mine:
        for part in rows.split(Moments.ROWS):
            yield part, theirs.rows(slice(start, start + len(part)))
            start += len(part)


def _write(
    out: Path,
    mine: Pooled,
    told: dict[str, Any],
    lines: dict[str, Tensor],
    counts: tuple[int, int],
    source: Path | None,
) -> dict[str, str]:
    """The files, and what to say of each."""
    found = nearest(mine, *counts)
    text = json.dumps(told | {"neighbours": found.listed()}, indent=1, allow_nan=False)
    written = {"numbers": str(out / "features.json"), "spectrum": str(out / "spectrum.svg")}
    write_atomically(out / "features.json", lambda file: file.write(text.encode()))
    drawn = spectrum_figure({name: _shares(values).tolist() for name, values in lines.items()})
    write_atomically(out / "spectrum.svg", lambda file: file.write(drawn.encode()))
    try:
        image = picture(mine.cache, found, source)
    except InputError as error:
        log.warning("no picture of the neighbours: %s", error)
        return written | {"neighbours": f"no picture: {error}"}
    write_atomically(out / "neighbours.png", lambda file: image.save(file, format="PNG"))
    return written | {"neighbours": str(out / "neighbours.png")}
