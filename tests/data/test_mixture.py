"""The order of a mixture: a pure function of seed, epoch and place, whoever draws it."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.data.mixture import TRIES, Draw, Mixture, MixtureOrder
from jepa.data.video_clips import Failure
from jepa.errors import InputError

SIZES, WEIGHTS = [1000, 50, 5], [0.5, 0.4, 0.1]


def order(count: int | None = 6000, rank: int = 0, ranks: int = 1, epoch: int = 0, **options) -> MixtureOrder:
    made = MixtureOrder(SIZES, WEIGHTS, count, rank=rank, ranks=ranks, **options)
    made.set_epoch(epoch)
    return made


def test_sources_come_by_weight_and_their_clips_alike():
    drawn = np.array(list(order(60000)))
    share = np.bincount(drawn[:, 0]) / len(drawn)
    assert np.abs(share - WEIGHTS).max() < 0.01
    for source, size in enumerate(SIZES):
        items = np.bincount(drawn[drawn[:, 0] == source, 1], minlength=size)
        assert len(items) == size
        assert abs(items.var() / items.mean() - 1) < 0.15 or size == 5  # a Poisson process
    assert items.min() > 1000  # of the smallest source: 1200 expected


@pytest.mark.parametrize("sizes", [SIZES, [6007]], ids=["mixture", "one source"])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_ranks_together_are_one_process(sizes, ranks):
    def drawn(rank, ranks):
        made = MixtureOrder(sizes, [1.0] * len(sizes), None, seed=4, rank=rank, ranks=ranks)
        made.set_epoch(3)
        return list(made)

    alone, parts = drawn(0, 1), [drawn(rank, ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(alone) // ranks}
    batch = 24
    for number in range(0, len(parts[0]) // batch):
        joint = alone[number * batch * ranks : (number + 1) * batch * ranks]
        assert sorted(joint) == sorted(draw for part in parts for draw in part[number * batch : (number + 1) * batch])


def test_keys_are_distinct_over_ranks_and_epochs():
    keys = [draw.key for epoch in range(4) for rank in range(3) for draw in order(rank=rank, ranks=3, epoch=epoch)]
    assert len(set(keys)) == len(keys) == 4 * 6000
    assert not set(keys) & {draw.key for draw in order(seed=1)}
    assert abs(np.mean(np.array(keys) > 0) - 0.5) < 0.02 and -(2**63) <= min(keys) and max(keys) < 2**63


def test_an_order_repeats_and_goes_on_from_any_place():
    whole = list(order(epoch=2, seed=9))
    assert whole == list(order(epoch=2, seed=9)) != list(order(epoch=3, seed=9))
    resumed = order(epoch=2, seed=9)
    resumed.skip = 4099
    assert list(resumed) == whole[4099:]


def test_one_source_is_permuted():
    made = MixtureOrder([5000], [0.3])
    first = [draw.item for draw in made]
    made.set_epoch(1)
    second = [draw.item for draw in made]
    assert sorted(first) == sorted(second) == list(range(5000)) and first != second
    assert len({draw.item for draw in MixtureOrder([5000], [1.0], 5000)}) < 4000  # with replacement


class Shaky:
    """Clips whose broken rows raise, and whose samples tell where they came from."""

    def __init__(self, videos: int, broken: set[int]) -> None:
        self.source = type("Source", (), {"path": "shaky/"})
        self.videos, self.rows, self.broken, self.asked = videos, np.arange(videos) + 100, broken, []

    def __len__(self) -> int:
        return self.videos

    def where(self, item: int) -> str:
        return f"shaky/{item}.mp4"

    def draw(self, item: int, key: int):
        self.asked.append(item)
        if item in self.broken:
            raise InputError(f"{item} is broken")
        return item, key


def test_a_broken_file_is_replaced_by_the_same_one_everywhere():
    draws = [Draw(0, item, key) for key, item in enumerate(np.random.default_rng(0).integers(40, size=200).tolist())]
    broken = set(range(0, 40, 3))
    clips = Shaky(40, broken)
    items = Mixture([clips]).__getitems__(draws)
    samples = [item for item in items if not isinstance(item, Failure)]
    assert [key for _, key in samples] == list(range(200))  # every draw has its sample, in order
    assert all(item == draw.item for (item, _), draw in zip(samples, draws) if draw.item not in broken)
    assert not broken & {item for item, _ in samples}
    failures = [item.file for item in items if isinstance(item, Failure)]
    assert sorted(failures) == sorted(f"shaky/{item}.mp4" for item in broken)  # each is tried once
    assert len([item for item in clips.asked if item in broken]) == len(broken)
    alone = Mixture([Shaky(40, broken)]).__getitems__(draws[150:])  # another worker, that has not met the others
    assert [item for item in alone if not isinstance(item, Failure)] == samples[150:]


@pytest.mark.parametrize("videos", [1, 3, 500])
def test_a_source_without_a_readable_file_is_fatal(videos):
    clips = Shaky(videos, set(range(videos)))
    *failures, last = Mixture([clips]).__getitems__([Draw(0, 0, 7)])
    assert last.fatal and last.file == "shaky/" and not any(failure.fatal for failure in failures)
    assert len(failures) == min(videos, TRIES)


def test_one_readable_file_is_found():
    *failures, sample = Mixture([Shaky(8, {0, 1, 2, 3, 4, 6, 7})]).__getitems__([Draw(0, 2, 7)])
    assert sample == (5, 7) and 0 < len(failures) < 8
