"""What packets tell of frames: their order, where decoding begins, and how long a frame waits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from jepa.data.packets import listed


def packets(*times, keys=(0,), hidden=(), sizes=1):
    return [
        SimpleNamespace(pts=time, is_keyframe=number in keys, is_discard=number in hidden, size=sizes)
        for number, time in enumerate(times)
    ]


def test_frames_are_in_the_order_of_presentation():
    table = listed(packets(0, 30, 10, 20, 40, 70, 60, 50, keys=(0, 4)))
    assert table.pts.tolist() == [0, 10, 20, 30, 40, 50, 60, 70] and table.keys.tolist() == [0, 4]
    assert table.timed and table.plain and table.depth == 2  # 50 is stored behind 70 and 60
    assert [table.key(number) for number in (0, 3, 4, 7)] == [0, 0, 4, 4]


def test_no_frame_waits_where_both_orders_are_one():
    assert listed(packets(*range(9))).depth == 0
    assert listed(packets(0, 2, 1)).depth == 1


def test_runs_part_where_a_jump_is_cheaper():
    table = listed(packets(*range(40), keys=(0, 10, 20, 30)))
    parted = lambda *wanted: [run.tolist() for run in table.runs(np.array(wanted, np.int64), 2)]  # noqa: E731
    assert parted(1, 5, 9) == [[1, 5, 9]]
    assert parted(1, 9, 12, 31, 32) == [[1, 9, 12], [31, 32]]  # from 9 on it is no further than a jump to 10
    assert parted(7, 13) == [[7], [13]] and parted() == [[]]


def test_frames_before_the_first_key_frame_are_reached_from_the_first():
    table = listed(packets(0, 1, 2, 3, keys=(2,)))
    assert table.keys.tolist() == [0, 2] and table.key(1) == 0


def test_leading_frames_and_hidden_ones_are_not_plain():
    assert not listed(packets(0, 10, 40, 20, 30, keys=(0, 2))).plain  # 20 and 30 come before their key frame
    table = listed(packets(0, 10, 20, hidden=(0,)))
    assert not table.plain and table.pts.tolist() == [10, 20]
    assert not listed(packets(0, 10, 10, 20)).plain  # which of the two is meant?


def test_packets_without_times_are_counted():
    table = listed(packets(None, 5, None))
    assert not table.timed and table.pts.tolist() == [0, 1, 2] and table.keys.tolist() == [0]
    assert not len(listed([]).pts)
    assert not len(listed(packets(1, 2, sizes=0)).pts)  # they flush the decoder
