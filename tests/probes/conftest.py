"""A linear system seen through a linear encoder: everything a probe should find is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks.embed import write_cache
from jepa.tasks.latents import Settings

SKIP = 2


class LinearEpisodes:
    """The position moves by the action; a picture's first two pixels are the position, in 1/2 units around 128."""

    def __init__(self, count: int = 24, length: int = 20, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.action = generator.uniform(-1, 1, (count, length, 2)).round(2)
        self.position = generator.uniform(-5, 5, (count, 1, 2)) + np.cumsum(self.action, axis=1) - self.action
        self.specs = Specs(
            ActionSpec((-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.6, 0.6)),
            ObservationSpec(2, 2, 3, (0.0,), (1.0,), ("x", "y", "side")),
        )

    def __len__(self) -> int:
        return len(self.action)

    def length(self, episode: int) -> int:
        return self.action.shape[1]

    def read(self, episode: int, frames: np.ndarray, columns: tuple[str, ...] | None = None) -> Sample:
        position = torch.from_numpy(self.position[episode][frames]).float()
        video = torch.zeros(len(frames), 3, 2, 2, dtype=torch.uint8)
        video[:, 0, 0] = (position * 8 + 128).clamp(0, 255).round().to(torch.uint8)
        return Sample(
            video=video,
            action=torch.from_numpy(self.action[episode][frames]).float(),
            proprio=position.sum(1, keepdim=True),
            state=torch.cat([position, (position[:, :1] > 0).float()], dim=1),
            reward=torch.from_numpy(np.asarray(frames, dtype=np.float32)),
        )


class LinearWorld(nn.Module):
    """z [B,T,2,4]: two tokens, each a fixed random view of the pixels."""

    def __init__(self, specs: Specs, seed: int = 0) -> None:
        super().__init__()
        observation = specs.observation
        action = ActionSpec(specs.action.low, specs.action.high, specs.action.mean, specs.action.std, block=SKIP)
        self.specs = Specs(action, observation)
        weight = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)
        self.seen: list[int] = []

    def encode(self, sample: Sample) -> torch.Tensor:
        assert sample.state is None and sample.reward is None, "the encoder was shown what it must not see"
        self.seen.append(len(sample.video))
        pixels = (sample.video.float().flatten(2) - 128) / 16
        return torch.einsum("btp,ndp->btnd", pixels, self.weight)

    def rollout(self, z: torch.Tensor, action: torch.Tensor, past: torch.Tensor | None = None) -> torch.Tensor:
        raise AssertionError("probes never roll out")


@pytest.fixture
def episodes() -> LinearEpisodes:
    return LinearEpisodes()


@pytest.fixture
def world(episodes) -> LinearWorld:
    return LinearWorld(episodes.specs)


@pytest.fixture
def splits() -> dict[str, list[int]]:
    return {"train": [0, *range(3, 18)], "val": [1, 18, 19], "test": [2, 20, 21, 22, 23]}


@pytest.fixture
def cache_path(world, episodes, splits, tmp_path):
    return write_cache(world, episodes, splits, tmp_path / "cache", settings=Settings(batch=32, dtype="float32"))
