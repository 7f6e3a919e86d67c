"""What ``jepa inspect cost`` says: parameters, FLOPs of a clip, memory of a rank, days of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from jepa.tasks.counting import CONFIGURED, Step, Work, blocks, choices

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
class Layout:
    """How ranks hold the model."""

    shards: int  # ranks that divide it among them, if it is divided; the others are copies of these
    sharded: bool  # as configured
    buckets: bool  # whether DDP holds the gradients a second time, as what it sends
    told: str  # what is configured, in words


@dataclass(frozen=True)
class Run:
    """How long a configuration trains, and how its steps are shared."""

    steps: int
    batch: int  # clips of an optimiser step, over all devices of the configuration
    recipe: str  # these devices, in words
    ranks: int  # that share the clips of a step now
    passes: int  # that a rank makes for a step
    at_once: int  # clips that a rank takes in a pass
    layout: Layout


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
        [f"clips, {run.at_once:,} at once on a rank", *(f"  {kind.seen}" for kind in clips)],
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
    """Of a rank that holds everything, and of one of those that divide weights, gradients and moments.

    What depends on ``recompute`` has a row for the configuration, and one for each other choice that there is.
    """
    layout = run.layout
    state = {name: (value, value / layout.shards) for name, value in _state(world).items()}
    if layout.buckets:
        state["gradients in buckets"] = (state["gradients"][0], 0.0)
    parts, totals, copied = {}, {}, f"weights in {str(dtype).removeprefix('torch.')}"
    for name, again in choices(world).items():
        copies = _copies(world, dtype, again)
        kept = run.at_once * sum(kind.share * kind.step.kept[name] for kind in clips)
        parts |= {f"{copied}, {name}": (copies, copies)} if copies else {}
        parts[f"activations, {name}"] = (kept, kept)
        totals[f"together, {name}"] = _add(*state.values(), (copies + kept, copies + kept))
    table = state | parts | totals
    size, unit = (GIB, "GiB") if max(map(max, totals.values())) > GIB else (MIB, "MiB")
    heads = ("DDP", f"FSDP2 over {layout.shards}") if run.ranks > 1 or layout.sharded else ("one device",)
    rows = {name: [f"{value / size:,.2f}" for value in values[: len(heads)]] for name, values in table.items()}
    lines = _columns(f"{unit} of a rank", heads, rows)
    lines.append(f"  {CONFIGURED}: {layout.told}; {_recomputing(world)}")
    return lines if memory is None else [*lines, *(_fits(name, heads, totals[name], memory) for name in totals)]


def _recomputing(world: nn.Module) -> str:
    again = choices(world)[CONFIGURED]
    names = [name for name, part in world.named_children() if again & set(part.modules())]
    return f"recompute=true in {' and '.join(names)}" if names else "nothing is computed again"


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


def _copies(world: nn.Module, dtype: torch.dtype, again: Collection[nn.Module]) -> float:
    """Autocast keeps a copy of each trained matrix for the backward pass; a block that computes again makes it anew."""
    anew = {id(p) for block, owner in blocks(world).items() if owner in again for p in block.parameters()}
    kept = [p for p in world.parameters() if p.requires_grad and p.ndim > 1 and p.dtype != dtype and id(p) not in anew]
    return float(sum(p.numel() for p in kept) * dtype.itemsize)


def _add(*columns: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*columns)))


def _fits(name: str, heads: Sequence[str], totals: Sequence[float], memory: float) -> str:
    told = ", ".join(f"{head} {'yes' if total < memory * GIB else 'no'}" for head, total in zip(heads, totals))
    return f"  {name}, fits {memory:g} GiB: {told}"


def _run(clips: Sequence[Clips], run: Run, peak: float, utilisation: float) -> dict[str, str]:
    """More accelerators share the clips of a step: the batch is the configuration's, whoever trains."""
    total = run.steps * run.batch * _mean(clips).total
    seconds = total / (run.ranks * peak * TERA * utilisation)
    hours = seconds * run.ranks / HOUR
    return {
        "steps": f"{run.steps:,} of {run.batch:,} clips, which are {run.steps * run.batch:,}; {run.recipe}",
        "a step": _share(run),
        "FLOPs": f"{total:.3e}",
        "time": f"{seconds / DAY:,.3g} days on {run.ranks} accelerators, {hours:,.4g} accelerator hours",
        "at": f"{utilisation:.0%} of {peak:g} TFLOP/s",
    }


def _share(run: Run) -> str:
    """The clips of a step that a rank takes, and how to have them taken."""
    each = f"{run.batch / run.ranks:,.2f}".removesuffix(".00")
    if run.at_once * run.passes * run.ranks != run.batch:
        return f"{each} clips on each of {run.ranks} accelerators on the mean: they do not divide the clips of a step"
    settings = f"data.batch_size={run.at_once}, trainer.accumulate_grad_batches={run.passes}"
    return f"{each} clips on each of {run.ranks} accelerators: {settings}"
