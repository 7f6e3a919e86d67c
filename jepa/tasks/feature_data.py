"""Training from a feature cache: the latents of a frozen encoder are computed once, by ``jepa embed``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from jepa.data.clips import Clips
from jepa.data.module import EpisodeData
from jepa.errors import InputError
from jepa.models.frozen import FrozenEncoder
from jepa.models.world import WorldModel
from jepa.schema import Sample, Specs
from jepa.tasks.features import COLUMNS, OFFSETS, fingerprint, read_meta
from jepa.tasks.shards import array, column, columns


class FeatureEpisodes:
    """The episodes of a cache, in its order: an episode store of latents [T,N,D] in place of pixels.

    Args:
        folder: what ``jepa embed`` wrote of episodes, with pool=none and no layers.
        memory: read all of it into memory once, in the type in which it is stored.

    Raises:
        InputError: no cache, one of clips, or one of other latents than a world model's.
    """

    def __init__(self, folder: Path, memory: bool = True) -> None:
        self.meta = read_meta(folder)
        held = columns(folder)
        if "start" in held or self.meta["pool"] != "none" or self.meta["layers"]:
            raise InputError(
                f"{folder} holds clips, pooled latents or several layers; embed episodes (data of class EpisodeData) "
                "with pool=none and layers=null"
            )
        specs = Specs.from_dict(self.meta["specs"]).to_dict()
        specs["action"]["block"] = 1  # rows are environment steps
        self.specs = Specs.from_dict(specs)
        self.offsets = array(folder / OFFSETS)
        names = ["features", *(name for name in COLUMNS if name in held)]
        self.columns: dict[str, Any] = {name: column(folder, name, self.meta) for name in names}
        if memory:
            self.columns = {name: table[:] for name, table in self.columns.items()}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def length(self, episode: int) -> int:
        return int(self.offsets[episode + 1] - self.offsets[episode])

    def part(self, name: str) -> list[int]:
        """Numbers, within this store, of the episodes of a split."""
        counts = {split: len(numbers) for split, numbers in self.meta["splits"].items()}
        names = list(counts)
        if name not in counts:
            return []
        first = sum(counts[earlier] for earlier in names[: names.index(name)])
        return list(range(first, first + counts[name]))

    def read(self, episode: int, frames: Any, columns: Iterable[str] | None = None) -> Sample:
        """Latents [T,N,D] float32, and the other columns at these frames."""
        return self.read_many(np.array([episode]), np.asarray(frames)[None], columns).map(lambda part: part[0])

    def read_many(self, episodes: np.ndarray, frames: np.ndarray, columns: Iterable[str] | None = None) -> Sample:
        """Frames [B,T] of episodes [B], as a batch."""
        last = np.diff(self.offsets)[episodes][:, None]
        if ((frames < 0) | (frames >= last)).any():
            raise IndexError(f"frames {frames.min()} to {frames.max()} of episodes of {last.min()} or more")
        rows = self.offsets[episodes][:, None] + frames
        known = {"latent" if name == "features" else name: name for name in self.columns}
        wanted = known if columns is None else [name for name in columns if name in known]
        return Sample(**{name: self._tensor(known[name], rows) for name in wanted})

    def _tensor(self, name: str, rows: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.ascontiguousarray(self.columns[name][rows]))
        return values if values.dtype == torch.bool else values.float()


class FeatureData(EpisodeData):
    """Windows of a feature cache, for world models whose encoder is frozen: nothing is encoded while they train.

    The latents are those that the encoder would make (exactly, in a float32 cache), so that the forecasts and the loss
    are the same. The split is the cache's. The encoder's weights must be those that made the cache, and are kept in
    the checkpoint, so that the model plans from pixels.

    Args:
        path: Folder that ``jepa embed`` wrote, with dtype=float32 for exactness, or float16 in half of the room.
        frames: Frames of a window.
        frame_skip: Environment steps from one frame to the next; their actions are concatenated.
        batch_size: Windows of a batch, on each device.
        workers: Processes that read ahead; 0 reads in the training process, which is best with ``memory``.
        memory: Load the cache into memory once.
        seed: Seed of the order.
        windows_per_epoch: Windows of a training epoch, drawn with replacement, over all devices; each one once if null.
        val_windows: Windows of the validation and of the test, spread evenly over the split; all of them if null.
        history: Frames that a model may start from; kept in the specs.
        drop_last: Leave out the last training batch when it is not full.
    """

    def __init__(
        self,
        path: str,
        frames: int = 9,
        frame_skip: int = 1,
        batch_size: int = 128,
        workers: int = 0,
        memory: bool = True,
        seed: int = 0,
        windows_per_epoch: int | None = None,
        val_windows: int | None = None,
        history: int = 1,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            path,
            frames,
            frame_skip,
            batch_size,
            workers,
            memory,
            seed=seed,
            windows_per_epoch=windows_per_epoch,
            val_windows=val_windows,
            history=history,
            drop_last=drop_last,
        )

    @property
    def episodes(self) -> FeatureEpisodes:
        """The store, opened and checked at the first use."""
        if self._episodes is None:
            self._episodes = FeatureEpisodes(Path(self.path), self.memory)
        return self._episodes

    def clips(self, part: Literal["train", "val", "test", "all"]) -> Clips:
        """Every window of one part of the cache's split; of "all" episodes, windows side by side."""
        if part == "all":
            return super().clips(part)
        if not (numbers := self.episodes.part(part)):
            raise InputError(f"{self.path} holds no episodes of the {part} split; embed it too (splits)")
        return Clips(self.episodes, numbers, **self.windowing)

    def setup(self, stage: str) -> None:
        """InputError unless the cache stands for the encoder of the model that is run."""
        world = getattr(self.trainer.lightning_module, "world", None)
        if not isinstance(world, WorldModel) or not world.encoder.frozen or not world.target.needs_latent:
            raise InputError(
                "a feature cache trains world models whose encoder is frozen and is its own target; use the target "
                "jepa.models.targets.Frozen, or data with pixels"
            )
        if fingerprint(FrozenEncoder(world.encoder)) != self.episodes.meta["weights"]:
            raise InputError(
                f"{self.path} was made with other weights than the encoder has ({self.episodes.meta['checkpoint']}); "
                "embed with jepa.models.frozen.FrozenEncoder of the same encoder and weights"
            )
