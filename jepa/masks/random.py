"""Random numbers that are a function of a key: what is drawn for a sample never depends on its batch.

Keys are uint64. All is NumPy on the CPU: a batch of masks is thousands of operations on a few numbers each, whose
launch alone would take longer in torch, on an accelerator above all.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # increment and multipliers of SplitMix64
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LAST = np.uint32(2**32 - 1)


def fold(key: Array, value: Array | int) -> Array:
    """New keys from keys, uint64, and what tells them apart, whole numbers: a hash, by the mixer of SplitMix64
    (Steele et al. 2014).

    It works element by element, so that the randomness of a sample is a function of its own key; for one key,
    different values always give different keys.
    """
    if isinstance(value, int):
        return _mix(key ^ np.uint64(_mix_number((value + 1) * GOLDEN & WORD)))
    return _mix(key ^ _mix((value.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)))


def _mix(bits: Array) -> Array:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(SECOND)
    return bits ^ (bits >> np.uint64(31))


def _mix_number(bits: int) -> int:
    bits = (bits ^ (bits >> 30)) * FIRST & WORD
    bits = (bits ^ (bits >> 27)) * SECOND & WORD
    return bits ^ (bits >> 31)


def uniform(key: Array, *shape: int) -> Array:
    """Keys [B] to float64 [B,*shape] in [0, 1)."""
    bits = fold(key[:, None], np.arange(math.prod(shape)))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(-1, *shape)


def order(key: Array, count: int) -> Array:
    """A random order of ``count`` tokens for each key [B]: uint32 [B,count], of which no two are equal.

    The numbers of the tokens, mixed with one half of the key and then with the other, each time by the finaliser of
    MurmurHash3, which maps no two numbers to one. Narrow, since what follows is bound by memory.
    """
    low, high = (half.astype(np.uint32)[:, None] for half in (key & np.uint64(2**32 - 1), key >> np.uint64(32)))
    ranks = _scramble(np.arange(count, dtype=np.uint32) ^ low)
    ranks ^= high
    return _scramble(ranks)


def _scramble(bits: Array) -> Array:
    """In place, uint32."""
    bits ^= bits >> np.uint32(16)
    bits *= np.uint32(0x85EBCA6B)
    bits ^= bits >> np.uint32(13)
    bits *= np.uint32(0xC2B2AE35)
    bits ^= bits >> np.uint32(16)
    return bits


def choose(rows: Array, count: int, ranks: Array) -> Array:
    """Of every row bool [R,N], the ``count`` true tokens that come first in the order [R,N]; all, if they are fewer."""
    true_ranks = np.where(rows, ranks, LAST)
    true_ranks.partition(count - 1, axis=1)
    return rows & (ranks <= true_ranks[:, count - 1 : count])


def first(rows: Array, count: int) -> Array:
    """Of every row bool [R,N], the first ``count`` true tokens; all, if they are fewer."""
    return rows & (rows.cumsum(1, dtype=np.int32) <= count)
