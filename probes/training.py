"""Train probes by gradient on cached features: every setting of a grid at once, on the same batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from jepa.errors import InputError, check_choice
from probes.base import Probe
from probes.cache import Examples, batches, hold_out
from probes.heads import Heads, Setting, Standing, quiet

Accelerator = Literal["cpu", "gpu", "auto"]

MEASURED = 8192  # examples at most whose features are looked at before gradient training, to standardise them
HELD_OUT = 0.1  # part of the training episodes that choose the head
RESIDENT = 2**29  # bytes of latents that stay in memory between the epochs; more are read from the disk each time


@dataclass(frozen=True)
class Swept:
    """The heads of a sweep, and the one that was the best on held-out training episodes."""

    probe: Probe  # the chosen head
    chosen: dict[str, Any]  # its lr, weight_decay and Standing.told; heads: how many began; dropped: by halving
    heads: list[Probe]  # all that were trained to the end
    settings: list[dict[str, Any]]  # the same of each of these


@torch.no_grad()
def predict(probe: Probe, examples: Examples, batch: int = 1024) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all examples, on the CPU."""
    probe.eval()
    batch = min(batch, examples.affordable)
    device = next((value.device for value in (*probe.parameters(), *probe.buffers())), torch.device("cpu"))
    parts = [(probe.answer(probe(z.to(device))).cpu(), y) for z, y in batches(examples, batch)]
    return torch.cat([part for part, _ in parts]), torch.cat([y for _, y in parts])


def sweep(
    probe: Probe,
    examples: Examples,
    epochs: int,
    batch: int,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    seed: int,
    accelerator: Accelerator = "cpu",
    halving: int | None = None,
) -> Swept:
    """Train a head for every learning rate and weight decay, all at once, and choose one.

    All heads begin with the same weights, those that ``probe.build`` draws, and see the same batches. AdamW, or what
    the probe names, without warm-up; the learning rates follow a cosine to zero, step by step. A tenth of the training
    episodes is held out, and the best head there is chosen (see :class:`probes.heads.Standing`); the published
    protocols take the best on the data that they report on, which flatters.

    Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) with factor h: training falls into R parts of
    equal length, R the least number with h^R >= heads, and after each but the last the heads are ranked on what is
    held out and the best 1/h of them, rounded up, go on. These do not notice: their order of batches, schedule and
    optimiser go on as without the others.

    Args:
        probe: the probe, not built yet; it is built here.
        examples: the training examples.
        epochs: passes over them.
        batch: examples of a step.
        lr: peak learning rates.
        weight_decay: weight decays.
        seed: of what is held out, and of the order.
        accelerator: cpu, gpu, or auto, the gpu where there is one.
        halving: factor by which heads become fewer, or None: all are trained to the end.
    """
    check_training(epochs, batch, lr, weight_decay, accelerator, halving)
    settings = [Setting(rate, decay) for rate in lr for decay in weight_decay]
    device = _device(accelerator)
    part, held = hold_out(examples, HELD_OUT, seed)
    some = np.random.default_rng(seed).permutation(len(part))[: min(MEASURED, part.affordable)]
    probe.build(part[np.sort(some)][0], part.y)
    heads = Heads(probe, settings, device)
    cuts = _cuts(len(heads), epochs, halving)
    standing, dropped = _train(heads, part.whole(RESIDENT), held, epochs, batch, seed, cuts)
    number = _best(standing)
    found = [asdict(setting) | standing.told(place) for place, setting in enumerate(heads.settings)]
    chosen = {**found[number], "heads": len(settings), "dropped": dropped}
    plain = [heads.head(number) for number in range(len(heads))]
    return Swept(plain[number], chosen, plain, found)


def _train(
    heads: Heads, part: Examples, held: Examples, epochs: int, batch: int, seed: int, cuts: dict[int, int]
) -> tuple[Standing, list[dict[str, Any]]]:
    """Train on ``part``; how the heads do on what is held, at the end, and which heads were dropped."""
    order = torch.Generator().manual_seed(seed)
    steps = itertools.count()
    total = epochs * math.ceil(len(part) / batch)
    dropped: list[dict[str, Any]] = []
    with quiet(), _bar() as bar:
        row = bar.add_task("probe", total=total)
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(len(part), generator=order).split(batch):
                heads.step(part, rows, 0.5 * (1 + math.cos(math.pi * next(steps) / total)))
                bar.advance(row)
            if epoch in cuts:
                dropped += _cut(heads, heads.evaluate(held), cuts[epoch], epoch)
        return heads.evaluate(held), dropped


def _cuts(count: int, epochs: int, halving: int | None) -> dict[int, int]:
    """After which epochs how many heads go on."""
    if halving is None:
        return {}
    parts = 1
    while halving**parts < count:
        parts += 1
    cuts = {}
    for number in range(1, parts):
        count = -(-count // halving)
        cuts[round(number * epochs / parts)] = count
    return {epoch: count for epoch, count in cuts.items() if 0 < epoch < epochs}


def _cut(heads: Heads, standing: Standing, count: int, epoch: int) -> list[dict[str, Any]]:
    """Go on with the best heads; what is said about the others."""
    order = standing.ranked()
    found = [
        asdict(heads.settings[number]) | {"epoch": epoch} | standing.told(number) for number in sorted(order[count:])
    ]
    heads.keep(sorted(order[:count]))
    return found


def _best(standing: Standing) -> int:
    """Number of the best head."""
    if not standing.losses.isfinite().any():
        raise InputError("no head has a finite held-out loss: lower lr")
    return standing.ranked()[0]


def check_training(
    epochs: int,
    batch: int,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    accelerator: Accelerator = "cpu",
    halving: int | None = None,
) -> None:
    """InputError where :func:`sweep` could not train so: said also where a closed form needs no training."""
    if epochs < 1 or batch < 1 or (halving is not None and halving < 2):
        raise InputError(
            f"epochs={epochs}, batch={batch}, halving={halving}: expected at least 1 of the first two, and null or at "
            "least 2 for halving"
        )
    check_choice("accelerator", accelerator, get_args(Accelerator))
    if not lr or not weight_decay:
        raise InputError("lr and weight_decay: expected at least one of each, give for example [0.001] and [0.01]")
    if not all(0 < rate < math.inf for rate in lr) or not all(0 <= decay < math.inf for decay in weight_decay):
        raise InputError(
            f"lr={list(lr)}, weight_decay={list(weight_decay)}: expected learning rates above 0 and weight decays of 0 "
            "or more"
        )


def _device(accelerator: Accelerator) -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "gpu" and found is None:
        raise InputError("accelerator=gpu, but torch finds none here: set accelerator to cpu or auto")
    return torch.device("cpu") if accelerator == "cpu" or found is None else found


def _bar() -> Progress:
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
