"""Rows of different lengths without padding: tokens lie end to end, and only attention sees them side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.schema import Mask


class Packing:
    """Where the tokens ``[1,total,...]`` of R rows lie; called with queries, keys and values, it attends within rows.

    Everything that works token by token takes packed tokens as they are. Attention lays them out as
    ``[R,longest]``, hides what fills the shorter rows, and packs the outcome again.

    Args:
        row: the row of each token, int64 [total].
        slot: its place in the row, int64 [total], below the row's length.
        lengths: of the rows, int64 [R].
        longest: the largest of them, or more; it must be known without asking the device.
    """

    def __init__(self, row: Tensor, slot: Tensor, lengths: Tensor, longest: int) -> None:
        self.row, self.slot, self.lengths, self.longest = row, slot, lengths, longest
        self.rows = len(lengths)
        self.place = row * longest + slot
        full = len(row) == self.rows * longest
        self.mask = None if full else (torch.arange(longest, device=row.device) < lengths[:, None])[:, None, None]

    @classmethod
    def of(cls, lengths: Tensor, total: int, longest: int) -> Packing:
        """Rows of these lengths, one after the other."""
        row = torch.repeat_interleave(lengths, output_size=total)
        start = lengths.cumsum(0) - lengths
        return cls(row, torch.arange(total, device=row.device) - start[row], lengths, longest)

    def followed_by(self, other: Packing, longest: int) -> Packing:
        """The tokens of both, those of ``other`` behind: each row is this one's and then the other's."""
        slot = torch.cat((self.slot, self.lengths[other.row] + other.slot))
        return Packing(torch.cat((self.row, other.row)), slot, self.lengths + other.lengths, longest)

    def mean(self, x: Tensor) -> Tensor:
        """[1,total,D] -> the mean of every row, [R,D]."""
        return x.new_zeros(self.rows, x.shape[2]).index_add(0, self.row, x[0]) / self.lengths[:, None].to(x.dtype)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[1,heads,total,head] three times -> [1,heads,total,head]"""
        attended = F.scaled_dot_product_attention(*map(self._lay_out, (q, k, v)), attn_mask=self.mask)
        packed = attended.transpose(1, 2).flatten(0, 1).index_select(0, self.place)
        return packed.transpose(0, 1).unsqueeze(0)

    def _lay_out(self, x: Tensor) -> Tensor:
        """[1,heads,total,head] -> [R,heads,longest,head]"""
        tokens = x[0].transpose(0, 1)
        laid = tokens.new_zeros(self.rows * self.longest, *tokens.shape[1:]).index_copy(0, self.place, tokens)
        return laid.unflatten(0, (self.rows, -1)).transpose(1, 2)


class Beside:
    """Several rows of the same B clips side by side, ``[B,sum of the K,...]``, which do not see each other.

    All but attention takes them as one row: every weight is read once, and its gradient made once.

    Args:
        lengths: K of each row.
    """

    row = None  # every token is of the clip that it stands with

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B,heads,sum of the K,head] three times -> the same"""
        rows = zip(*(x.split(self.lengths, dim=2) for x in (q, k, v)))
        # joined as tokens lie after attention, so that nothing is copied once more
        return torch.cat([F.scaled_dot_product_attention(*row).transpose(1, 2) for row in rows], dim=1).transpose(1, 2)


class PackedMasks:
    """Several packed masks of B clips, joined into one: the contexts as n*B rows, the targets as the sum of the B*M.

    Args:
        masks: as :class:`jepa.masks.Masks` draws them.
        batch: B.

    Attributes:
        context, target: token numbers, [1,sum of the K] and [1,sum of the L].
        seen: the rows of the contexts.
        hidden: the rows of the targets.
        asked: for each row of the targets, the context that it is asked of.
        both: ``asked`` followed by ``hidden``, as the predictor takes them.
        clip: the clip of each row of the targets.
        counts: tokens of the targets of each mask.
        context_counts: tokens of the contexts of ``asked`` of each mask.
    """

    def __init__(self, masks: Sequence[Mask], batch: int) -> None:
        targets = [(len(mask.target_offsets) - 1) // batch for mask in masks]
        self.context = torch.cat([mask.context for mask in masks])[None]
        self.target = torch.cat([mask.target for mask in masks])[None]
        seen = torch.cat([mask.context_offsets.diff() for mask in masks]).long()
        hidden = torch.cat([mask.target_offsets.diff() for mask in masks]).long()
        rows = torch.arange(len(seen), device=seen.device).split(batch)
        source = torch.cat([part.repeat_interleave(count) for part, count in zip(rows, targets)])
        asked = seen[source]
        longest, joint = _longest(masks, seen, asked + hidden)
        self.counts = [len(mask.target) for mask in masks]
        self.context_counts = [len(mask.context) * count for mask, count in zip(masks, targets)]
        self.seen = Packing.of(seen, self.context.shape[1], longest)
        self.hidden = Packing.of(hidden, self.target.shape[1], joint)
        self.asked = Packing.of(asked, sum(self.context_counts), joint)
        self.both = self.asked.followed_by(self.hidden, joint)
        self.clip = source % batch
        self._rows = [batch * count for count in targets]
        self._copy = None if max(targets) == 1 else (seen.cumsum(0) - seen)[source][self.asked.row] + self.asked.slot

    def ask(self, x: Tensor) -> Tensor:
        """What belongs to the tokens of ``seen``, [1,sum of the K,...], for those of ``asked``."""
        return x if self._copy is None else x.index_select(1, self._copy)

    def weight(self, packing: Packing, counts: list[int]) -> Tensor:
        """float32 [1,total], of mean 1 over the tokens of each mask: the sum is the same in all rows of a mask."""
        shares = packing.lengths[packing.row].float().reciprocal().split(counts)
        return torch.cat([part * (n / rows) for part, n, rows in zip(shares, counts, self._rows)])[None]


def _longest(masks: Sequence[Mask], seen: Tensor, joint: Tensor) -> list[int]:
    """The largest of the lengths ``seen`` and ``joint``.

    Masks that :class:`jepa.masks.Masks` draws say it. For others the host waits for the device, and a compiled model
    breaks in two here.
    """
    known = [mask.longest for mask in masks if mask.longest is not None]
    if len(known) == len(masks):
        return [max(lengths) for lengths in zip(*known)]
    return torch.stack((seen.max(), joint.max())).tolist()
