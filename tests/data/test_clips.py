"""Windows: every valid start, frames and action blocks aligned, goals behind the window, splits by episode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coded_episodes import coded, write

from jepa.data.clips import Clips, collate, split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.errors import InputError
from jepa.schema import Sample


class Plain:
    """The protocol and nothing more: no ``read_many``."""

    def __init__(self, store: Hdf5Episodes) -> None:
        self.store, self.specs = store, store.specs

    def __len__(self) -> int:
        return len(self.store)

    def length(self, episode: int) -> int:
        return self.store.length(episode)

    def read(self, episode: int, frames: Any, columns: tuple[str, ...] | None = None) -> Sample:
        return self.store.read(episode, frames, columns)


def same(one: Sample, other: Sample) -> None:
    for name, value in vars(one).items():
        if isinstance(value, Sample):
            same(value, getattr(other, name))
        elif value is None:
            assert getattr(other, name) is None, name
        else:
            assert torch.equal(value, getattr(other, name)), name


SHAPES = [(4, 3, 1), (4, 3, 2), (2, 1, 1), (1, 1, 1), (1, 4, 3), (12, 1, 1)]


@pytest.mark.parametrize(("frames", "skip", "stride"), SHAPES)
def test_windows(store: Hdf5Episodes, frames: int, skip: int, stride: int) -> None:
    clips = Clips(store, frames=frames, frame_skip=skip, stride=stride)
    span, found = (frames - 1) * skip, []
    for number in range(len(clips)):
        sample = clips[number]
        episode, start = sample.index.tolist()
        found.append((episode, start))
        times = [start + step * skip for step in range(frames)]
        assert sample.video[:, 1, 0, 0].tolist() == times == sample.state[:, 1].tolist()
        assert (sample.video[:, 0] == episode).all() and (-sample.proprio[:, 0]).tolist() == times
        if frames == 1:
            assert sample.action is None
            continue
        assert sample.action.shape == (frames - 1, skip * 2)
        blocks = sample.action.view(frames - 1, skip, 2)
        assert (blocks[..., 0] == episode).all()
        assert blocks[..., 1].flatten().tolist() == list(range(start, start + span))  # action t leaves frame t
        assert sample.reward.tolist() == [sum(range(time, time + skip)) for time in times[:-1]]
        last = store.length(episode) - 1
        assert sample.terminated.tolist() == [time + skip > last - 1 for time in times[:-1]]
    expected = [(number, start) for number in range(4) for start in range(0, store.length(number) - span, stride)]
    assert found == expected
    if stride == 1:
        assert found[-1] == (3, store.length(3) - 1 - span)  # the very last start


@pytest.mark.parametrize("goal", ["none", "future", "last"])
def test_batches_equal_single_windows(store: Hdf5Episodes, goal: Any) -> None:
    clips = Clips(store, [2, 0], frames=3, frame_skip=2, goal=goal)
    numbers = [5, 0, len(clips) - 1, 5]
    batch = clips.__getitems__(numbers)
    same(batch, Sample.stack([clips[number] for number in numbers]))
    same(batch, Clips(Plain(store), [2, 0], frames=3, frame_skip=2, goal=goal).__getitems__(numbers))
    same(collate(batch), collate([clips[number] for number in numbers]))
    assert batch.video.permute(0, 1, 3, 4, 2).is_contiguous()  # as it lies on the disk


def test_goals(store: Hdf5Episodes) -> None:
    last = Clips(store, [2], frames=3, frame_skip=2, goal="last")
    assert all(last[number].goal.state.tolist() == [[2.0, 29.0]] for number in range(len(last)))
    drawn = []
    for seed in range(40):
        clips = Clips(store, [2], frames=3, frame_skip=2, goal="future", seed=seed)
        goals = clips.__getitems__(range(len(clips))).goal
        assert goals.video.shape == (len(clips), 1, 3, 6, 8)
        assert torch.equal(goals.video[:, 0, 1, 0, 0], goals.state[:, 0, 1])
        assert goals.state[-1, 0, 1] == 29  # nothing is left behind the last window
        drawn.append(goals.state[:, 0, 1])
    times = torch.stack(drawn)
    ends = torch.arange(len(clips)) + 4
    assert (times[:, :-1] > ends[:-1]).all() and (times <= 29).all()
    assert set(times[:, -4].tolist()) == {27, 28, 29}  # uniform, both ends included
    assert times[:, 0].mean() == pytest.approx(17, abs=3)


def test_columns_and_specs(store: Hdf5Episodes) -> None:
    clips = Clips(store, frames=3, frame_skip=4, columns=("video", "action"), history=2)
    assert clips[0].state is None and clips[0].reward is None and clips[0].action.shape == (2, 8)
    assert clips.specs.action == replace(store.specs.action, block=4) and clips.specs.action.width == 8
    assert clips.specs.evaluation.history == 2 and clips.specs.observation == store.specs.observation
    with pytest.raises(InputError, match="no column 'depth'"):
        Clips(store, columns=("depth",), frames=2)


def test_short_episodes(store: Hdf5Episodes, caplog: pytest.LogCaptureFixture) -> None:
    clips = Clips(store, frames=4, frame_skip=3)
    assert clips.short == 1 and "1 of 4 episodes have fewer than 10 frames" in caplog.text
    with pytest.raises(InputError, match="needs 31 frames and the longest of 4 episodes has 30"):
        Clips(store, frames=11, frame_skip=3)
    with pytest.raises(InputError, match="no window"):
        Clips(store, [], frames=2)
    for wrong in ({"frames": 0}, {"frame_skip": 0}, {"goal": "first"}, {"history": 5, "frames": 4}):
        with pytest.raises(InputError):
            Clips(store, **wrong)
    with pytest.raises(IndexError):
        clips[len(clips)]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_split(total: int, tmp_path: Path) -> None:
    episodes = range(total)  # only the number of them counts
    train, val, test = parts = split(episodes, (0.9, 0.05, 0.05), seed=3)
    assert sorted(train + val + test) == list(episodes)
    assert parts == split(episodes, (0.9, 0.05, 0.05), seed=3)
    assert train and (total < 3 or (val and test))
    if total == 100:
        assert (len(train), len(val), len(test)) == (90, 5, 5) and parts != split(episodes, seed=4)
        assert split(episodes, (1.0, 0.0, 0.0)) == (list(episodes), [], [])
    for wrong in ((0.5, 0.5), (0.9, 0.2, 0.05), (0.0, 0.5, 0.5), (1.1, -0.1, 0.0)):
        with pytest.raises(InputError, match="splits are"):
            split(episodes, wrong)


def test_many_frames_in_a_chunk(tmp_path: Path) -> None:
    """A file of another writer, whose chunks cover several frames and episodes, reads the same."""
    import h5py

    path = write(tmp_path / "a.h5", [12, 5])
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][:]
        del file["pixels"]
        file.create_dataset("pixels", data=pixels, chunks=(7, 6, 8, 3), compression="lzf")
    batch = Clips(Hdf5Episodes(path), frames=3, frame_skip=2).__getitems__([0, 7, 8])
    assert batch.video[:, :, 1, 0, 0].tolist() == [[0, 2, 4], [7, 9, 11], [0, 2, 4]]
    assert np.array_equal(batch.video[2, 0].numpy(), coded(1, 5)["video"][0])
