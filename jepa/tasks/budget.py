"""What ``jepa inspect cost`` says: parameters, FLOPs of a clip, memory of a rank, days of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from jepa.tasks.counting import Step, Work

MIB, GIB, GIGA, TERA = 2.0**20, 2.0**30, 1e9, 1e12
HOUR, DAY = 3600.0, 86400.0
KINDS = ("forward", "backward", "recomputed", "total")


@dataclass(frozen=True)
class Clips:
    """One kind of clips of a batch."""

    share: float  # of the clips of a batch
    seen: str  # what they are, in words
    step: Step


@dataclass(frozen=True)
class Run:
    """How long a configuration trains."""

    steps: int
    at_once: int  # clips that one rank takes at once
    batch: int  # clips of an optimiser step, over all ranks
    ranks: int


def describe(
    world: nn.Module,
    clips: Sequence[Clips],
    run: Run,
    dtype: torch.dtype,
    peak: float,
    utilisation: float,
    memory: float | None,
) -> str:
    """The whole text; ``peak`` in TFLOP/s, ``memory`` of a rank in GiB."""
    tables = [
        ["model", *_table(_parameters(world))],
        [f"clips, {run.at_once} at once on a rank", *(f"  {kind.seen}" for kind in clips)],
        _work(clips),
        _memory(world, clips, run, dtype, memory),
        ["run", *_table(_run(clips, run, peak, utilisation))],
    ]
    return "\n".join(line for table in tables for line in table)


def _parameters(world: nn.Module) -> dict[str, str]:
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in world.named_children()}
    trained = sum(p.numel() for p in world.parameters() if p.requires_grad)
    return {name: f"{number:,} parameters" for name, number in parts.items()} | {"trained": f"{trained:,} parameters"}


def _table(facts: dict[str, str]) -> list[str]:
    width = max(map(len, facts))
    return [f"  {name:<{width}}  {value}" for name, value in facts.items()]


def _columns(title: str, heads: Sequence[str], rows: dict[str, Iterable[str]]) -> list[str]:
    """A table whose numbers stand below their heads."""
    width, wide = max(map(len, (title, *rows))) + 2, max(map(len, heads)) + 4
    lines = [f"{title:<{width}}" + "".join(f"{head:>{wide}}" for head in heads)]
    for name, cells in rows.items():
        lines.append(f"  {name:<{width - 2}}" + "".join(f"{cell:>{wide}}" for cell in cells))
    return lines


def _mean(clips: Sequence[Clips], part: str | None = None) -> Work:
    """FLOPs of the mean clip, in one part or in all."""
    found = [(kind.share, kind.step.parts.get(part) if part else kind.step.work) for kind in clips]
    sums = (sum(share * getattr(work, name) for share, work in found if work) for name in KINDS[:3])
    return Work(*sums)


def _work(clips: Sequence[Clips]) -> list[str]:
    names = dict.fromkeys(name for kind in clips for name in kind.step.parts)
    works = {name: _mean(clips, name) for name in names} | {"together": _mean(clips)}
    size, prefix = (TERA, "T") if works["together"].total > TERA / 10 else (GIGA, "G")
    rows = {name: [f"{getattr(work, kind) / size:,.3f}" for kind in KINDS] for name, work in works.items()}
    return _columns(f"{prefix}FLOPs of a clip", ("forward", "backward", "recomputed", "together"), rows)


def _memory(
    world: nn.Module, clips: Sequence[Clips], run: Run, dtype: torch.dtype, memory: float | None
) -> list[str]:
    """Of a rank that holds everything, and of one of ``ranks`` that divide weights, gradients and moments."""
    state = {name: (value, value / run.ranks) for name, value in _state(world).items()}
    copies = {name: (value, value) for name, value in _copies(world, dtype).items()}
    kept = run.at_once * sum(kind.share * kind.step.kept for kind in clips)
    inputs = run.at_once * sum(kind.share * kind.step.checkpointed for kind in clips)
    totals = {
        "together": _add(*state.values(), *copies.values(), (kept, kept)),
        "together, checkpointed": _add(*state.values(), (inputs, inputs)),
    }
    table = state | copies | {"activations": (kept, kept), "activations, checkpointed": (inputs, inputs)} | totals
    size, unit = (GIB, "GiB") if max(totals["together"]) > GIB else (MIB, "MiB")
    rows = {name: [f"{value / size:,.2f}" for value in values] for name, values in table.items()}
    heads = ("DDP", f"FSDP2 over {run.ranks}")
    lines = _columns(f"{unit} of a rank", heads, rows)
    return lines if memory is None else [*lines, *(_fits(name, heads, totals[name], memory) for name in totals)]


def _state(world: nn.Module) -> dict[str, float]:
    """Bytes that do not depend on the clips. The teacher is what the target has and nothing trains."""
    teacher = {id(p): p.nbytes for p in world.target.parameters() if not p.requires_grad}
    trained = sum(p.nbytes for p in world.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in world.parameters() if id(p) not in teacher)
    return {
        "weights": weights,
        "gradients": trained,
        "AdamW moments": 2 * trained,
        "teacher": sum(teacher.values()),
    }


def _copies(world: nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """Autocast keeps a copy of each trained matrix for the backward pass; a checkpointed block makes it again."""
    numbers = sum(p.numel() for p in world.parameters() if p.requires_grad and p.ndim > 1 and p.dtype != dtype)
    return {f"weights in {str(dtype).removeprefix('torch.')}": numbers * dtype.itemsize} if numbers else {}


def _add(*columns: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*columns)))


def _fits(name: str, heads: Sequence[str], totals: Sequence[float], memory: float) -> str:
    told = ", ".join(f"{head} {'yes' if total < memory * GIB else 'no'}" for head, total in zip(heads, totals))
    return f"  {name}, fits {memory:g} GiB: {told}"


def _run(clips: Sequence[Clips], run: Run, peak: float, utilisation: float) -> dict[str, str]:
    total = run.steps * run.batch * _mean(clips).total
    seconds = total / (run.ranks * peak * TERA * utilisation)
    hours = seconds * run.ranks / HOUR
    return {
        "steps": f"{run.steps:,} of {run.batch:,} clips, which are {run.steps * run.batch:,}",
        "FLOPs": f"{total:.3e}",
        "time": f"{seconds / DAY:,.3g} days on {run.ranks} accelerators, {hours:,.4g} accelerator hours",
        "at": f"{utilisation:.0%} of {peak:g} TFLOP/s",
    }
