"""Pairs of start and goal from recorded episodes, as a protocol asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.evaluation.protocols import EvaluationProtocol, RecordedProtocol
from jepa.schema import Episodes

TRIES = 50  # windows that are looked at per pair that is wanted


def episode_pairs(
    episodes: Episodes,
    protocol: EvaluationProtocol,
    success: Callable[[Tensor, Tensor], Tensor],
    held_out: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw starts and goals ``offset`` environment steps apart: privileged states [pairs,X] each.

    Every window of the held-out episodes is equally likely. The draw depends on the seed of the protocol only, and
    the first n of more pairs are the n pairs.

    Args:
        episodes: where the states come from; only the state column is read
        protocol: offset, number of pairs, seed, and whether solved starts are left out
        success: states and goals [B,X] -> bool [B], as the task has it
        held_out: numbers of the episodes to draw from; all by default

    Raises:
        InputError: the episodes are too short, hold no state, or hardly ever leave where they started
    """
    numbers = list(range(len(episodes)) if held_out is None else held_out)
    windows = torch.tensor([max(0, episodes.length(number) - protocol.offset) for number in numbers])
    if not len(numbers) or windows.sum() == 0:
        raise InputError(
            f"none of the {len(numbers)} held-out episodes is longer than {protocol.offset} steps, which protocol "
            f"{protocol.name} puts between start and goal; collect longer episodes"
        )
    generator, ends = torch.Generator().manual_seed(protocol.seed), windows.cumsum(0)
    found: list[Tensor] = []
    for _ in range(TRIES * protocol.pairs):
        pick = (torch.rand(1, generator=generator, dtype=torch.float64) * int(ends[-1])).long()
        row = int(torch.searchsorted(ends, pick, right=True))
        first = int(pick - (ends - windows)[row])
        pair = _states(episodes, numbers[row], first, first + protocol.offset)
        if not (protocol.unsolved and success(pair[:1], pair[1:])):
            found.append(pair)
        if len(found) == protocol.pairs:
            both = torch.stack(found)
            return both[:, 0], both[:, 1]
    raise InputError(
        f"only {len(found)} of {TRIES * protocol.pairs} windows of the held-out episodes end out of reach of their "
        f"start, protocol {protocol.name} wants {protocol.pairs}; collect episodes that move further"
    )


def recorded_pairs(episodes: Episodes, protocol: RecordedProtocol, block: int, held_out: Sequence[int]) -> Tensor:
    """Draw starts, ``horizon`` model steps of ``block`` environment steps before their goals: int64 [pairs,2], episode
    and frame of each.

    At least one model step lies before a start. No start is drawn twice, every one is equally likely, and the first n
    of more pairs are the n pairs.

    Raises:
        InputError: the episodes hold fewer starts than the protocol wants
    """
    last = [episodes.length(number) - 1 - protocol.horizon * block for number in held_out]
    starts = [(number, frame) for number, end in zip(held_out, last) for frame in range(block, end + 1)]
    if len(starts) < protocol.pairs:
        raise InputError(
            f"the {len(held_out)} held-out episodes hold {len(starts)} starts with {block} steps before and "
            f"{protocol.horizon * block} behind them, protocol {protocol.name} wants {protocol.pairs}: hold out or "
            "record more, or ask for fewer with --pairs"
        )
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(protocol.seed))
    return torch.tensor(starts)[order[: protocol.pairs]]


def _states(episodes: Episodes, episode: int, start: int, goal: int) -> Tensor:
    state = episodes.read(episode, torch.tensor([start, goal]).numpy(), columns=("state",)).state
    if state is None:
        raise InputError(
            "goals from episodes need their privileged state, but the dataset has no state column; collect it again"
        )
    return state
