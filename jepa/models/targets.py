"""What the predictor is to forecast: the latents of an EMA copy, of a frozen encoder, or of the encoder itself."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.encoders import Encoder
from jepa.models.layers import layer_norm
from jepa.models.weights import fill, read_state


class Target(nn.Module):
    """``forward(encoder, video [B,T,C,H,W], latent [B,T,N,D]) -> h [B,T,N,D]``.

    ``latent`` is what the context encoder made of the same video; a target that does not need it encodes the video.
    Encoders of several levels make latents, and so targets, of [B,T,N,levels*D]; each level is normalised by itself.
    """

    needs_latent: bool = True  # where it does not, a model that encodes only what is visible need not make it

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = norm

    def bind(self, encoder: nn.Module) -> None:
        """Meet the encoder, once, before training."""

    def reader(self, encoder: Encoder) -> Encoder:
        """What the finished model is read through: of the encoder and its teacher, the one that learned best."""
        return encoder

    def source(self, encoder: Encoder) -> Encoder:
        """The encoder whose latents are the target."""
        return encoder

    def update(self, encoder: nn.Module, progress: float) -> None:
        """Follow the encoder after an optimiser step; ``progress`` runs from 0 to 1 over the training."""

    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say which latents are the target")

    def forward(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        h = self.latents(encoder, video, latent)
        if not self.norm:
            return h
        levels = h.unflatten(-1, (-1, self.source(encoder).dim))
        return layer_norm(levels).flatten(-2)


class EMA(Target):
    """An exponential moving average of the encoder (Grill et al. 2020; the teacher of I-JEPA and V-JEPA).

    After optimiser step i of n, counted from 0: teacher = m_i * teacher + (1 - m_i) * encoder, with
    m_i = start + (end - start) * i / (horizon * n).

    Args:
        start: momentum at the first step.
        end: momentum that the steps at the end of the horizon approach.
        norm: layer norm without parameters on the targets.
        horizon: length of the schedule over that of the training, 1 or more; V-JEPA's 1.25 stops before ``end``.
    """

    needs_latent = False

    def __init__(self, start: float = 0.99, end: float = 0.999, norm: bool = True, horizon: float = 1.0) -> None:
        super().__init__(norm)
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise InputError(f"EMA(start={start}, end={end}): expected momenta of 0 to 1; change the one that is not")
        if not 1 <= horizon < math.inf:
            raise InputError(f"EMA(horizon={horizon}): expected 1 or more; give e.g. 1.25, as published for V-JEPA")
        self.start, self.end, self.horizon = start, end, horizon
        self.teacher: nn.Module | None = None

    def bind(self, encoder: nn.Module) -> None:
        self.teacher = deepcopy(encoder).requires_grad_(False)

    def reader(self, encoder: Encoder) -> Encoder:
        return self.source(encoder)

    def source(self, encoder: Encoder) -> Encoder:
        assert self.teacher is not None, "EMA.bind was not called"
        return self.teacher

    @torch.no_grad()
    def update(self, encoder: nn.Module, progress: float) -> None:
        assert self.teacher is not None, "EMA.bind was not called"
        momentum = self.start + (self.end - self.start) * progress / self.horizon
        teacher, student = list(self.teacher.parameters()), list(encoder.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)
        for mine, theirs in zip(self.teacher.buffers(), encoder.buffers()):  # batch norm statistics
            mine.copy_(theirs)

    @torch.no_grad()
    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        return self.source(encoder).latents(video)


class Frozen(Target):
    """The encoder itself, which does not learn (DINO-WM, V-JEPA 2-AC): its latents are computed once and used twice.

    Args:
        norm: layer norm without parameters on the targets.
    """

    def __init__(self, norm: bool = True) -> None:
        super().__init__(norm)

    def bind(self, encoder: Encoder) -> None:
        encoder.freeze()

    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor) -> Tensor:
        return latent.detach()


class Teacher(Target):
    """Another encoder, which was trained before and does not learn (SALT; distillation). It may be of another width.

    Args:
        encoder: as it was trained; its tokens must be those of the encoder that learns.
        weights: a checkpoint of ``jepa fit``, whose target's encoder is taken (the context encoder, where it has no
            target of its own), or a state dict of the encoder (.safetensors). Nothing in it can run code. None leaves
            the weights that the encoder has.
        norm: layer norm without parameters on the targets.
    """

    needs_latent = False

    def __init__(self, encoder: Encoder, weights: str | None = None, norm: bool = True) -> None:
        super().__init__(norm)
        if weights is not None:
            _fill(encoder, Path(weights))
        encoder.freeze()
        self.encoder = encoder

    def bind(self, encoder: Encoder) -> None:
        if self.encoder.grid != encoder.grid or not self.encoder.fits(*encoder.frame):
            raise InputError(
                f"the teacher makes {self.encoder.grid} tokens of {self.encoder.frame} pixels, the encoder "
                f"{encoder.grid} of {encoder.frame}; give a teacher of the same size and patch"
            )

    def source(self, encoder: Encoder) -> Encoder:
        return self.encoder

    @torch.no_grad()
    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        return self.encoder.latents(video)


class Online(Target):
    """The encoder itself, which learns from both sides (LeWM, PLDM): needs a regulariser that forbids collapse.

    Args:
        norm: layer norm without parameters on the targets.
        stop_gradient: cut the gradient on the target's side (SimSiam).
    """

    def __init__(self, norm: bool = False, stop_gradient: bool = False) -> None:
        super().__init__(norm)
        self.stop_gradient = stop_gradient

    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor) -> Tensor:
        return latent.detach() if self.stop_gradient else latent


def _fill(encoder: Encoder, path: Path) -> None:
    """Load the weights of an encoder, strictly."""
    state = read_state(path, "a teacher", "give a checkpoint of jepa fit or a .safetensors file")
    state = state.get("state_dict", state)
    for prefix in ("world.target.teacher.", "world.encoder."):
        if part := {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}:
            state = part
            break
    fill(encoder, state, path, "the teacher")
