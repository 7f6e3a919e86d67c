"""What the predictor is to forecast: the latents of an EMA copy, of a frozen encoder, or of the encoder itself."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from jepa.models.encoders import Encoder
from jepa.models.layers import layer_norm


class Target(nn.Module):
    """``forward(encoder, video [B,T,C,H,W], latent [B,T,N,D]) -> h [B,T,N,D]``.

    ``latent`` is what the context encoder made of the same video; a target that does not need it encodes the video.
    """

    needs_latent: bool = True  # where it does not, a model that encodes only what is visible need not make it

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = norm

    def bind(self, encoder: nn.Module) -> None:
        """Meet the encoder, once, before training."""

    def update(self, encoder: nn.Module, progress: float) -> None:
        """Follow the encoder after an optimiser step; ``progress`` runs from 0 to 1 over the training."""

    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say which latents are the target")

    def forward(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        h = self.latents(encoder, video, latent)
        return layer_norm(h) if self.norm else h


class EMA(Target):
    """An exponential moving average of the encoder (Grill et al. 2020; the teacher of I-JEPA and V-JEPA).

    After optimiser step i of n, counted from 0: teacher = m_i * teacher + (1 - m_i) * encoder, with
    m_i = start + (end - start) * i / n.

    Args:
        start: momentum at the first step.
        end: momentum that the last steps approach.
        norm: layer norm without parameters on the targets.
    """

    needs_latent = False

    def __init__(self, start: float = 0.99, end: float = 0.999, norm: bool = True) -> None:
        super().__init__(norm)
        self.start, self.end = start, end
        self.teacher: nn.Module | None = None

    def bind(self, encoder: nn.Module) -> None:
        self.teacher = deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def update(self, encoder: nn.Module, progress: float) -> None:
        assert self.teacher is not None, "EMA.bind was not called"
        momentum = self.start + (self.end - self.start) * progress
        teacher, student = list(self.teacher.parameters()), list(encoder.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)
        for mine, theirs in zip(self.teacher.buffers(), encoder.buffers()):  # batch norm statistics
            mine.copy_(theirs)

    @torch.no_grad()
    def latents(self, encoder: nn.Module, video: Tensor, latent: Tensor | None) -> Tensor:
        assert self.teacher is not None, "EMA.bind was not called"
        return self.teacher(video)


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
