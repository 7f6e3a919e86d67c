"""What the packets of a video stream tell about its frames, without decoding any of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """The frames of a file in the order of presentation, as its packets tell them."""

    pts: np.ndarray  # int64 [F] presentation times in units of the stream; just counted where the packets have none
    keys: np.ndarray  # int64 [G] numbers of the frames where decoding can begin, ascending from 0
    timed: bool  # whether the packets have presentation times
    # no frame is hidden by an edit list, none leads its key frame (an open group of pictures), and no two share a time
    plain: bool
    depth: int  # most frames that are stored before one and shown after it

    def key(self, number: int) -> int:
        """The last key frame at or before a frame."""
        return int(self.keys[np.searchsorted(self.keys, number, side="right") - 1])

    def runs(self, wanted: np.ndarray, near: int) -> list[np.ndarray]:
        """Ascending numbers of frames, parted where a key frame lies so far behind the last one that decoding on to it
        costs more than a jump: by more than ``near`` frames."""
        keys = self.keys[np.searchsorted(self.keys, wanted, side="right") - 1]
        return np.split(wanted, np.flatnonzero(keys[1:] > wanted[:-1] + near) + 1)


def listed(packets: Iterable[Any]) -> Table:
    """Read the packets of a stream once. Empty ones flush the decoder, or fill gaps in an AVI file."""
    facts = [(p.pts, p.is_keyframe, p.is_discard) for p in packets if p.size]
    shown = [(pts, key) for pts, key, hidden in facts if not hidden]
    if any(pts is None for pts, _ in shown):
        return counted(len(shown))
    pts = np.array([pts for pts, _ in shown], dtype=np.int64)
    key = np.array([key for _, key in shown], dtype=bool)
    # in the order of the file: whether a frame comes before the key frame that it is stored behind
    leads = len(pts) and pts < np.maximum.accumulate(np.where(key, pts, pts[0]))
    order = np.argsort(pts, kind="stable")
    apart = bool(np.all(np.diff(pts[order]) > 0))
    keys = np.union1d(np.flatnonzero(key[order]), np.arange(min(len(pts), 1)))
    plain = len(shown) == len(facts) and not np.any(leads) and apart
    # the frame that waits for most of those stored before it has none to wait for behind it
    depth = int((order - np.arange(len(order))).max(initial=0))
    return Table(pts[order], keys, timed=True, plain=plain, depth=depth)


def counted(frames: int) -> Table:
    """Of a stream whose packets do not tell when their frames are shown: the first one only can be jumped to."""
    count = np.arange(frames)
    return Table(count, count[:1], timed=False, plain=False, depth=0)
