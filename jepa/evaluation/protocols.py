"""Named and versioned evaluation protocols: results are compared only under the same one.

Papers report one model on one task with numbers far apart, because each counts differently. A protocol fixes what
decides the number: which environment, which starts and goals, how many steps, when a success counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.errors import InputError, check_known
from jepa.schema import Episodes


@dataclass(frozen=True)
class EvaluationProtocol:
    """How a policy is judged.

    Args:
        name: name and version; a change of any other entry needs a new one
        env: gymnasium id
        env_options: keyword arguments of ``jepa.envs.make``
        pairs: how many pairs of start and goal
        budget: environment steps
        goals: ``environment``: the environment draws start and goal; ``episodes``: both are states of one held-out
            episode, ``offset`` environment steps apart
        offset: environment steps from start to goal, for ``episodes``
        unsolved: leave out pairs whose start already counts as success, for ``episodes``
        judged: when a success counts: ``any`` step of the budget, the start included, or only the ``end`` of it
        stops: a pair ends at its first success, and the policy is told; otherwise it acts to the end of the budget and
            is told nothing
        open_loop: the policy sees the start and nothing after it, so that its first plan must cover the budget
        seed: pair i is seeded with seed + i
        description: one sentence
    """

    name: str
    env: str
    env_options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int = 200
    budget: int = 50
    goals: Literal["environment", "episodes"] = "environment"
    offset: int = 0
    unsolved: bool = False
    judged: Literal["any", "end"] = "any"
    stops: bool = True
    open_loop: bool = False
    seed: int = 1_000_000
    description: str = ""

    def __post_init__(self) -> None:
        if min(self.pairs, self.budget) < 1 or (self.goals == "episodes" and self.offset < 1):
            raise InputError(
                f"protocol {self.name} wants pairs >= 1, budget >= 1 and, for goals from episodes, offset >= 1; was "
                f"given pairs={self.pairs}, budget={self.budget}, offset={self.offset}"
            )
        if self.judged == "end" and self.stops:
            raise InputError(
                f"protocol {self.name} is judged at the end of its budget, so that no pair may stop at its first "
                "success: expected stops=False"
            )

    def with_pairs(self, pairs: int) -> EvaluationProtocol:
        """The same protocol on its first ``pairs`` pairs."""
        return replace(self, pairs=pairs)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RecordedProtocol:
    """How plans are scored where there is no simulator: against the actions that were recorded on the way to the goal.

    Args:
        name: name and version; a change of any other entry needs a new one
        pairs: how many pairs of start and goal, of held-out episodes
        horizon: model steps from start to goal
        seed: of the draw, and of the floor that acts at random
        description: one sentence
    """

    name: str
    pairs: int = 200
    horizon: int = 3
    seed: int = 1_000_000
    description: str = ""

    def __post_init__(self) -> None:
        if min(self.pairs, self.horizon) < 1:
            raise InputError(
                f"protocol {self.name} wants pairs >= 1 and horizon >= 1; was given pairs={self.pairs}, "
                f"horizon={self.horizon}"
            )

    def with_pairs(self, pairs: int) -> RecordedProtocol:
        """The same protocol on its first ``pairs`` pairs."""
        return replace(self, pairs=pairs)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_ALL = (
    EvaluationProtocol(
        "two_rooms/v1",
        "jepa/TwoRooms-v0",
        budget=80,
        description="Start and goal in opposite rooms; wall and door are always at the same place.",
    ),
    EvaluationProtocol(
        "two_rooms_random/v1",
        "jepa/TwoRooms-v0",
        env_options={"layout": "random"},
        budget=80,
        description="Start and goal in opposite rooms; wall and door are drawn anew for every pair.",
    ),
    EvaluationProtocol(
        "pusht/swm25-50",
        "gym_pusht/PushT-v0",
        goals="episodes",
        offset=25,
        budget=50,
        description="Reach the state that a held-out episode reached 25 steps later; success at any of 50 steps.",
    ),
    EvaluationProtocol(
        "pusht/openloop30",
        "gym_pusht/PushT-v0",
        goals="episodes",
        offset=30,
        budget=30,
        judged="end",
        stops=False,
        open_loop=True,
        description="Reach the state that a held-out episode reached 30 steps later by one plan of 30 steps, acted out "
        "blindly; success at the last of them.",
    ),
    EvaluationProtocol(
        "pusht/dinowm-unbounded",
        "gym_pusht/PushT-v0",
        goals="episodes",
        offset=25,
        budget=250,
        judged="end",
        stops=False,
        description="Reach the state that a held-out episode reached 25 steps later with any number of plans, and stay "
        "there: nobody tells the policy that it succeeded; success at the last of 250 steps, ten times the offset.",
    ),
    EvaluationProtocol(
        "reacher/25-50",
        "Reacher-v5",
        goals="episodes",
        offset=25,
        budget=50,
        description="Reach the posture that a held-out episode reached 25 steps later; success at any of 50 steps.",
    ),
    EvaluationProtocol(
        "point_maze/25-50",
        "PointMaze_UMaze-v3",
        goals="episodes",
        offset=25,
        unsolved=True,
        budget=50,
        description="Reach the place, out of reach at the start, that a held-out episode reached 25 steps later; "
        "success at any of 50 steps.",
    ),
    EvaluationProtocol(
        "point_maze/cells",
        "PointMaze_UMaze-v3",
        budget=150,
        description="Start, at rest, and goal are noisy centres of different cells of the U-shaped maze, as the "
        "simulator draws them; success at any of 150 steps.",
    ),
    *(
        EvaluationProtocol(
            f"metaworld_{task}/expert100",
            "Meta-World/MT1",
            env_options={"task": task},
            budget=100,
            judged="end",
            stops=False,
            description="Take the posture that MetaWorld's expert takes after 100 steps from the same start, and stay: "
            "the point between the fingers is within 5 cm of the goal's at the last of 100 steps.",
        )
        for task in ("reach", "reach_wall")
    ),
    EvaluationProtocol(
        "ogbench_cube/swm25-50",
        "visual-cube-single-v0",
        goals="episodes",
        offset=25,
        budget=50,
        description="Bring the cube to where it lay, in a held-out episode, 25 steps later; success at any of 50 "
        "steps. As published: a cube that did not move in those 25 steps counts as brought.",
    ),
    EvaluationProtocol(
        "ogbench_cube/moved25-50",
        "visual-cube-single-v0",
        goals="episodes",
        offset=25,
        unsolved=True,
        budget=50,
        description="Bring the cube to where a held-out episode had moved it, by more than 0.04 m, 25 steps later; "
        "success at any of 50 steps.",
    ),
    RecordedProtocol(
        "recorded/action-error-v1",
        description="Plan to the frame that a held-out episode reached three model steps later, and compare the plan "
        "with the recorded actions.",
    ),
)
_TRIES = 50  # windows that are looked at per pair that is wanted
PROTOCOLS: dict[str, EvaluationProtocol | RecordedProtocol] = {protocol.name: protocol for protocol in _ALL}


def find_protocol(name: str) -> EvaluationProtocol | RecordedProtocol:
    """The protocol of that name; InputError with the nearest name otherwise."""
    check_known("protocol", [name], PROTOCOLS)
    return PROTOCOLS[name]


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
    for _ in range(_TRIES * protocol.pairs):
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
        f"only {len(found)} of {_TRIES * protocol.pairs} windows of the held-out episodes end out of reach of their "
        f"start, protocol {protocol.name} wants {protocol.pairs}; collect episodes that move further"
    )


def recorded_pairs(
    episodes: Episodes, protocol: RecordedProtocol, block: int, held_out: Sequence[int]
) -> Tensor:
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
