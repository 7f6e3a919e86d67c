"""A world model over recorded windows: what it sees in them, what it forecasts, and how wrong that was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.evaluation.diagnostics import forecast_error
from jepa.metrics import Moments
from jepa.models.world import WorldModel
from jepa.planning import wants_proprio
from jepa.schema import Sample


@dataclass(frozen=True)
class Seen:
    """Windows in latents."""

    z: Tensor  # [n,T,N,D] what forecasts begin from
    h: Tensor  # [n,T,N,D] what they are compared with: the target's latents


@dataclass(frozen=True)
class Errors:
    """Mean squared errors in units of the distance of two unrelated frames, so that latent spaces compare.

    The unit is twice the variance over all frames of the windows, which every token position has by itself, averaged
    over tokens and dimensions: 1 is as wrong as any other frame. Where nothing varies, errors stay as they are.
    """

    plans: Tensor  # [n,1+S,H] of the forecasts, the recorded plan first
    copy: Tensor  # [n,H] of "nothing changes"
    unit: float  # in the latent space itself


class Watch:
    """Reads windows of T frames through a world, in batches.

    Args:
        world: in evaluation mode; of a world with a target the forecasts are compared with its latents, as in training
        history: frames that a forecast begins from
        device: where the world is
        batch: windows at once
        chunk: candidate plans at once, for each window
    """

    def __init__(self, world: WorldModel, history: int, device: str = "cpu", batch: int = 32, chunk: int = 64) -> None:
        self.world, self.history = world.to(device), history
        self.device, self.batch, self.chunk = device, batch, chunk

    def batches(self, windows: Sample) -> Iterator[tuple[slice, Sample]]:
        """Rows, and what the world may see of them, on its device: never the privileged state."""
        shown = Sample(video=windows.video, action=windows.action, proprio=windows.proprio)
        for start in range(0, len(windows.video), self.batch):
            rows = slice(start, start + self.batch)
            yield rows, shown.map(lambda part: part[rows]).to(self.device)

    def see(self, sample: Sample) -> Seen:
        """Of one batch."""
        z = self.world.encode(sample)
        return Seen(z, self.world.targets(sample, z))

    def forecasts(self, z: Tensor, sample: Sample, action: Tensor) -> Tensor:
        """From the first ``history`` latents of the windows: plans [b,S,H,A] -> [b,S,H,N,D]."""
        past = sample.action[:, : self.history - 1] if self.history > 1 else None
        roll, poses = self.world.rollout, self.poses(sample)
        if poses is not None:
            roll = partial(roll, proprio=poses)
        parts = action.split(self.chunk, dim=1)
        return torch.cat([roll(z[:, : self.history], part, past) for part in parts], dim=1)

    def poses(self, sample: Sample) -> Tensor | None:
        """Proprioception of the history [b,T,P], for a world whose rollouts want it."""
        if not wants_proprio(self.world):
            return None
        if sample.proprio is None:
            raise InputError("this world model needs proprio beside the video; use episodes that record it")
        return sample.proprio[:, : self.history]

    @torch.inference_mode()
    def latents(self, windows: Sample) -> Tensor:
        """The target's latents of all frames [n,T,N,D], on the CPU."""
        return torch.cat([self.see(sample).h.float().cpu() for _, sample in self.batches(windows)])

    @torch.inference_mode()
    def errors(self, windows: Sample, plans: Tensor) -> Errors:
        """Of forecasts over all steps behind the history, of which there are H.

        Args:
            windows: T = history + H frames
            plans: raw plans [n,S,H,A] beside the recorded one
        """
        found, moments = [], None
        for rows, sample in self.batches(windows):
            seen, future = self.see(sample), sample.action[:, None, self.history - 1 :]
            plan = torch.cat([future, plans[rows].to(self.device)], dim=1)
            latents = seen.h.flatten(0, 1).flatten(1).cpu()
            moments = (moments or Moments(latents.shape[1], diagonal=True)).add(latents)
            future = seen.h[:, self.history :]
            error = forecast_error(self.forecasts(seen.z, sample, plan), future)
            still = seen.h[:, None, self.history - 1 : self.history].expand(-1, -1, future.shape[1], -1, -1)
            found.append((error.float().cpu(), forecast_error(still, future)[:, 0].float().cpu()))
        errors, copies = zip(*found)
        unit = 2 * float(moments.covariance.mean()) or 1.0
        errors, copies = torch.cat(errors), torch.cat(copies)
        if not (errors.isfinite().all() and copies.isfinite().all()):
            raise InputError("a latent or a forecast of the model is NaN or infinite: check the checkpoint")
        return Errors(errors / unit, copies / unit, unit)

    @torch.inference_mode()
    def surprise(self, windows: Sample) -> Tensor:
        """Errors of one-step forecasts: [n,T-history], entry t of what came at frame history + t."""
        found = []
        for _, sample in self.batches(windows):
            seen, steps = self.see(sample), []
            for end in range(self.history, seen.z.shape[1]):
                part = replace(sample, action=sample.action[:, end - self.history :])
                if sample.proprio is not None:
                    part = replace(part, proprio=sample.proprio[:, end - self.history :])
                action = sample.action[:, None, end - 1 : end]
                forecast = self.forecasts(seen.z[:, end - self.history :], part, action)
                steps.append(forecast_error(forecast, seen.h[:, end : end + 1])[:, 0, 0])
            found.append(torch.stack(steps, dim=1).float().cpu())
        return torch.cat(found)
