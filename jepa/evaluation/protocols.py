"""Named and versioned evaluation protocols: results are compared only under the same one.

Papers report one model on one task with numbers far apart, because each counts differently. A protocol fixes what
decides the number: which environment, which starts and goals, how many steps, when a success counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from jepa.errors import InputError, check_known


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
PROTOCOLS: dict[str, EvaluationProtocol | RecordedProtocol] = {protocol.name: protocol for protocol in _ALL}


def find_protocol(name: str) -> EvaluationProtocol | RecordedProtocol:
    """The protocol of that name; InputError with the nearest name otherwise."""
    check_known("protocol", [name], PROTOCOLS)
    return PROTOCOLS[name]
