"""The residual conv net of IMPALA (Espeholt et al. 2018), which PLDM and EB-JEPA look with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.encoders import Encoder


def _groups(channels: int) -> int:
    """Of a group norm: eight, but of four channels at least."""
    return min(8, channels // 4)


class Residual(nn.Module):
    """Two convolutions beside the identity: [n,channels,H,W] to the same."""

    def __init__(self, channels: int, group_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
            layers += [nn.GroupNorm(_groups(channels), channels)] if group_norm else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ImpalaNet(Encoder):
    """Stacks of a convolution, a max pool of stride 2 and residual blocks, flattened into one vector per frame: N = 1.

    Args:
        dim: D, the width of the latent.
        size: height and width of a frame in pixels.
        channels: of each stack, multiples of 4; with ``group_norm`` and from 32 on, of 8.
        blocks: residual blocks of a stack.
        group_norm: group norm behind the convolutions of the blocks (PLDM).
        norm: end with a layer norm without parameters.
    """

    def __init__(
        self,
        dim: int = 512,
        size: int = 64,
        channels: tuple[int, ...] = (16, 32, 32),
        blocks: int = 2,
        group_norm: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__(size, (0.5,) * 3, (0.5,) * 3, norm)
        if not channels or any(count % 4 or count < 4 for count in channels):
            raise InputError(f"ImpalaNet was given channels {channels}; expected multiples of 4, one for each stack")
        if group_norm and any(count % _groups(count) for count in channels):
            raise InputError(f"ImpalaNet was given channels {channels}; group_norm expects multiples of 8 from 32 on")
        self.dim, self.grid = dim, (1, 1)
        layers: list[nn.Module] = []
        inputs, side = 3, size
        for outputs in channels:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
            layers += [Residual(outputs, group_norm) for _ in range(blocks)]
            inputs, side = outputs, (side + 1) // 2
        self.stacks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs * side * side, dim)

    def features(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.stacks(images)).flatten(1))[:, None]
