"""A column of strings in two arrays, so that millions of paths take their bytes and no objects.

Worker processes that are forked share these arrays: reading them writes nothing, as counting references to objects
would, which copies a list of strings into every worker, page by page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class Strings:
    """A sequence of strings.

    Args:
        blob: Their UTF-8, end to end, uint8.
        ends: Where each ends, int64 [R].
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, values: Iterable[str]) -> Strings:
        coded = [value.encode("utf-8", "surrogateescape") for value in values]
        ends = np.cumsum([len(value) for value in coded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(coded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        row = range(len(self))[row]
        begin = self.ends[row - 1] if row else 0
        return self.blob[begin : self.ends[row]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each, int64 [R]."""
        return np.diff(self.ends, prepend=0)
