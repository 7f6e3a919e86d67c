"""Heads: what can be read from the latent of a frame, such as a reward, a value or proprioception."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.parts import load_part, save_part


class Head(nn.Module):
    """Latents of single frames z [n,1,N,D], tokens averaged, to numbers [n,K] in raw units.

    Inputs and outputs are standardised by what :meth:`fit` measured.

    Args:
        dim: D, of the latents.
        outputs: K.
        hidden: width of the hidden layer; 0 for a linear head.
    """

    def __init__(self, dim: int, outputs: int = 1, hidden: int = 128) -> None:
        super().__init__()
        if min(dim, outputs) < 1 or hidden < 0:
            raise InputError(f"Head was given dim={dim}, outputs={outputs}, hidden={hidden}; expected 1, 1, 0 or more")
        self.options = {"dim": dim, "outputs": outputs, "hidden": hidden}
        self.net = nn.Linear(dim, outputs)
        if hidden:
            self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        for name, width in (("in", dim), ("out", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[1] != 1 or z.shape[-1] != self.options["dim"]:
            raise InputError(f"the head was given latents {tuple(z.shape)}; expected [n,1,N,{self.options['dim']}]")
        return self.net((z.mean((1, 2)) - self.in_mean) / self.in_std) * self.out_std + self.out_mean

    def fit(
        self, z: Tensor, y: Tensor, steps: int = 1000, batch: int = 256, lr: float = 3e-3, seed: int = 0
    ) -> Head:
        """Least squares by AdamW with a cosine to zero, on latents [n,1,N,D] and targets [n,K]; the fitted head itself.

        ``steps`` of ``batch`` rows each; ``seed`` says which.
        """
        if len(z) != len(y) or y.shape[1:] != (self.options["outputs"],):
            raise InputError(f"{len(z)} latents and targets {tuple(y.shape)}; expected [n,{self.options['outputs']}]")
        x, y = z.mean((1, 2)).float(), y.float()
        for name, values in (("in", x), ("out", y)):
            std = values.std(0, correction=0)
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
        optimizer = torch.optim.AdamW(self.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        draw = torch.Generator().manual_seed(seed)
        self.train().requires_grad_(True)  # frozen, where it was fitted or loaded before
        for _ in range(steps):
            rows = torch.randint(len(x), (min(batch, len(x)),), generator=draw).to(x.device)
            optimizer.zero_grad()
            wanted = (y[rows] - self.out_mean) / self.out_std
            F.mse_loss(self.net((x[rows] - self.in_mean) / self.in_std), wanted).backward()
            optimizer.step(), schedule.step()
        return self.eval().requires_grad_(False)

    def save(self, path: Path | str) -> None:
        """Write a .safetensors file for :func:`load_head`."""
        save_part(self, path, self.options)


def load_head(path: str) -> Head:
    """A head that was saved, ready to read.

    Args:
        path: of its .safetensors file.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    return load_part(path, "Head", lambda options: Head(**options))
