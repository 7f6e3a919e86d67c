"""The heads of a sweep: copies of one probe whose parameters lie in one tensor each, trained as if each were alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.base import Probe
from probes.cache import Examples

CLIP = 1.0  # largest norm of a head's gradient
MOMENTUM = 0.9  # of SGD
WORK = 2**27  # bytes on a CPU, about, of what is at hand for a gradient; beyond that, it is summed up in pieces
SHARE = 4  # one part in so many of an accelerator's free memory takes its place there


@contextmanager
def quiet() -> Iterator[None]:
    """Within, torch does not tell that its attention on CPUs goes head by head: large ones lose nothing by it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop.*_scaled_dot_product")
        yield


@dataclass(frozen=True)
class Setting:
    """How one head is trained."""

    lr: float  # at the start
    weight_decay: float


@dataclass(frozen=True)
class Standing:
    """How K heads do on some examples, on the CPU."""

    losses: Tensor  # [K]
    wrong: Tensor | None  # [K] share of wrong answers, where an example is asked for one class

    def ranked(self) -> list[int]:
        """Numbers of the heads, the best first: of fewest wrong answers, and of these of the lowest loss.

        A head that is certain of all it says has a high loss from few mistakes: by the loss alone, one that has learnt
        little goes before it. NaN is the worst loss.
        """
        losses = self.losses.nan_to_num(float("inf"))
        wrong = torch.zeros_like(losses) if self.wrong is None else self.wrong.masked_fill(losses.isinf(), 1)
        return sorted(range(len(losses)), key=lambda number: (float(wrong[number]), float(losses[number])))

    def told(self, number: int) -> dict[str, float | None]:
        """For reports, of one head. None stands for what JSON has no number for."""
        loss = self.losses[number]
        found = {"held_out_loss": float(loss) if loss.isfinite() else None}
        return found if self.wrong is None else found | {"held_out_accuracy": 1 - float(self.wrong[number])}


class Heads:
    """K heads that begin as copies of one built probe: parameters ``{name: [K,...]}`` and an optimiser for all.

    Every head's gradient is clipped to norm 1 by itself, and its learning rate and weight decay are its own, so one
    that diverges, even to NaN, changes nothing in the others. AdamW decays all parameters, as published.

    Args:
        probe: a built probe.
        settings: of each head.
        device: where to train.
    """

    def __init__(self, probe: Probe, settings: Sequence[Setting], device: torch.device | str = "cpu") -> None:
        self.probe, self.settings = copy.deepcopy(probe).to(device), list(settings)
        trained = {name: value.detach() for name, value in self.probe.named_parameters() if value.requires_grad}
        count = len(self.settings)
        self.weights = {name: value.expand(count, *value.shape).clone() for name, value in trained.items()}
        self._ready()

    def __len__(self) -> int:
        return len(self.settings)

    def _ready(self) -> None:
        """A gradient beside each parameter, and the optimiser over every head's part of both."""
        self.gradients = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        groups = []
        for number, setting in enumerate(self.settings):
            own = [value[number] for value in self.weights.values()]  # of the same memory
            for value, gradient in zip(own, self.gradients.values()):
                value.grad = gradient[number]
            groups.append({"params": own, "lr": setting.lr, "weight_decay": setting.weight_decay})
        if self.probe.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, fused=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, fused=True)

    def step(self, examples: Examples, rows: Tensor, rate: float) -> Tensor:
        """One step on the examples ``rows [n]`` at ``rate`` times each learning rate; returns the losses ``[K]``."""
        self.probe.train()
        for gradient in self.gradients.values():
            gradient.zero_()
        losses = torch.zeros(len(self), device=self._device)
        for z, y in self._pieces(examples, rows):
            losses += self.backward(z, y, len(y) / len(rows))
        self._clip()
        for group, setting in zip(self.optimizer.param_groups, self.settings):
            group["lr"] = rate * setting.lr
        self.optimizer.step()
        return losses

    def backward(self, z: Tensor, y: Tensor, share: float) -> Tensor:
        """Add the gradients of a piece that is this share of a batch; returns its part of the losses ``[K]``."""
        parts = []
        for place in self._parts(z):
            own = {name: value[place].detach().requires_grad_() for name, value in self.weights.items()}
            losses = self.probe.losses(self.probe.together(own, z), y) * share
            # No head shares a parameter with another, so each gets the gradient of its own loss.
            found = torch.autograd.grad(losses.sum(), list(own.values()), materialize_grads=True, allow_unused=True)
            for gradient, value in zip(self.gradients.values(), found):
                gradient[place] += value
            parts.append(losses.detach())
        return torch.cat(parts)

    def _clip(self) -> None:
        norms = [torch.linalg.vector_norm(value.flatten(1), dim=1) for value in self.gradients.values()]
        shrink = (CLIP / (torch.stack(norms).norm(dim=0) + 1e-6)).clamp(max=1)
        for value in self.gradients.values():
            value.mul_(shrink.view(-1, *[1] * (value.ndim - 1)))

    @torch.no_grad()
    def evaluate(self, examples: Examples) -> Standing:
        """Means over all examples."""
        self.probe.eval()
        losses, missed = torch.zeros(2, len(self), dtype=torch.float64)
        for z, y in self._pieces(examples, torch.arange(len(examples))):
            for place in self._parts(z):
                own = {name: value[place] for name, value in self.weights.items()}
                predictions, share = self.probe.together(own, z), len(y) / len(examples)
                losses[place] += self.probe.losses(predictions, y).double().cpu() * share
                wrong = self.probe.wrong(predictions, y)
                if wrong is not None:
                    missed[place] += wrong.double().cpu() * share
        return Standing(losses.float(), None if wrong is None else missed.float())

    def head(self, number: int) -> Probe:
        """One head as a plain probe, on the CPU."""
        probe = copy.deepcopy(self.probe).cpu().eval()
        own = dict(probe.named_parameters())
        with torch.no_grad():
            for name, value in self.weights.items():
                own[name].copy_(value[number])
        return probe

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with some of the heads, which do not notice."""
        before = [group["params"] for group in self.optimizer.param_groups]
        state = self.optimizer.state
        self.weights = {name: value[list(numbers)] for name, value in self.weights.items()}
        self.settings = [self.settings[number] for number in numbers]
        self._ready()
        for group, number in zip(self.optimizer.param_groups, numbers):
            for value, old in zip(group["params"], before[number]):
                self.optimizer.state[value] = state[old]

    @property
    def _device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    def _work(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0] // SHARE
        return WORK

    def _pieces(self, examples: Examples, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents, of the cache's precision, and targets on the device; as many at once as there is room for."""
        z, _ = examples.stored(rows[:1].numpy())
        fitting = max(1, self._work() // (2 * z.numel() * z.element_size() + self.probe.footprint(z)))
        for part in rows.tensor_split(-(-len(rows) // fitting)):
            z, y = examples.stored(part.numpy())
            yield z.to(self._device), y.to(self._device)

    def _parts(self, z: Tensor) -> list[slice]:
        """Which heads are trained together on a piece: all, or as many as there is room for."""
        fitting = max(1, self._work() // (len(z) * self.probe.footprint(z)))
        size = -(-len(self) // -(-len(self) // fitting))
        return [slice(first, first + size) for first in range(0, len(self), size)]
