"""What the tests of interrupted embedding share: it is run by them, and as a process that kills itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from jepa.data.crops import Pixels
from jepa.data.video_clips import Failure, VideoSource
from jepa.data.video_module import VideoData
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.tasks import construction
from jepa.tasks.embed import embed, write_cache
from jepa.tasks.latents import Settings

SPLITS = {"train": [0, 2, 4], "test": [1, 3]}
LENGTHS = (21, 5, 27, 13, 18)
SMALL = 1_000  # bytes of a megabyte in these tests
SPECS = Specs(ActionSpec((), (), (), ()), ObservationSpec(4, 4, state_names=("x",)))


class Noise:
    """Episodes of noise."""

    specs = SPECS

    def __len__(self):
        return len(LENGTHS)

    def length(self, episode):
        return LENGTHS[episode]

    def read(self, episode, frames, columns=None):
        video = np.random.default_rng(episode).integers(0, 256, (30, 3, 4, 4), dtype=np.uint8)[frames]
        state = torch.from_numpy(np.float32(frames))[:, None] + 100 * episode
        return Sample(video=torch.from_numpy(video), state=state)


class Mixer(nn.Module):
    """z [B,T,4,24]: matrix products, whose rounding may depend on what else is in a batch. Kills its process after
    so many batches."""

    specs = SPECS

    def __init__(self, seed=0, kill_after=None):
        super().__init__()
        torch.manual_seed(seed)
        self.mix = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 96))
        self.kill_after, self.asked = kill_after, 0

    def encode(self, sample):
        self.asked += 1
        if self.asked == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.mix(sample.video.flatten(2).float() / 255).unflatten(2, (4, 24))


class Index:
    """Nine videos."""

    def __init__(self):
        self.columns = {"x": np.arange(9.0)}
        self.path, self.hash = [f"{row}.mp4" for row in range(9)], [f"hash {row}" for row in range(9)]
        self.frames, self.duration, self.decoder = np.full(9, 40), np.full(9, 1.6), np.full(9, "decord")

    def where(self, row):
        return Path("/films") / f"{row}.mp4"


class Clips:
    """Two clips of every video, in three views; those that ``broken`` names cannot be read."""

    def __init__(self, rows, broken=()):
        self.source = VideoSource("films", frames=2, clips=2, views=3)
        self.timing, self.pixels, self.short = self.source.timing, Pixels(4), "skip"
        self.index, self.labels, self.broken = Index(), ("x",), broken
        self.rows, self.videos, self.specs = np.repeat(rows, 2), len(rows), SPECS

    def __len__(self):
        return len(self.rows)

    def where(self, item):
        return self.index.where(int(self.rows[item]))

    def views(self, item):
        row = int(self.rows[item])
        if (row, item % 2) in self.broken:
            return Failure(str(self.where(item)), "the file is broken")
        video = np.random.default_rng([row, item % 2]).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
        state = torch.full((2, 1), float(row))
        return Sample(torch.from_numpy(video), state=state, index=torch.tensor([row, item % 2]), key=torch.tensor(0))


class Films(VideoData):
    """Parts that are given instead of opened."""

    def __init__(self, broken=()):
        super().__init__([VideoSource("films")], size=4, batch_size=3, workers=0)
        self.given = {"train": [Clips([0, 1, 2, 3, 4], broken)], "test": [Clips([5, 6, 7, 8], broken)]}

    def parts(self, part):
        return self.given[part]


def embed_frames(out, world, batch=7, **settings):
    return write_cache(world, Noise(), SPLITS, out, Settings(batch=batch, shard_mb=2, **settings))


def embed_clips(out, world, broken=(), **settings):
    return embed(world, Films(broken), out, ["train", "test"], shard_mb=2, **settings)


if __name__ == "__main__":
    construction.MEGABYTE = SMALL
    kind, folder, kills, lost = sys.argv[1:]
    given = {"broken": [tuple(map(int, one.split("."))) for one in lost.split(",") if one]} if kind == "clips" else {}
    (embed_clips if kind == "clips" else embed_frames)(Path(folder), Mixer(kill_after=int(kills)), **given)
