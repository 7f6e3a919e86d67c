"""Whether a world may act in a task: what a checkpoint says of its use, against what it is asked to do."""

from __future__ import annotations

import logging

from jepa.errors import InputError
from jepa.planning.costs import Cost
from jepa.schema import Specs, World

log = logging.getLogger(__name__)

_MUST_AGREE = (
    *("action.low", "action.high", "action.choices"),
    *("observation.height", "observation.width", "observation.channels"),
)


def check_specs(world: Specs, task: Specs, force: bool = False) -> None:
    """InputError if a world cannot act in a task: other action width or bounds, image size, or environment.

    Args:
        world: what the checkpoint was trained on
        task: what it is to act in
        force: log the differences and go on; what does not fit the network fails later
    """
    must = _MUST_AGREE + (("evaluation.env",) if world.evaluation.env and task.evaluation.env else ())
    lines = [line for line in world.differences(task) if line.startswith(tuple(f"{name}:" for name in must))]
    _refuse(
        lines,
        "the world and the environment disagree (world != environment)",
        "use the environment that the checkpoint was trained for, or train on episodes of this one",
        force,
    )


def check_history(world: Specs, history: int | None, force: bool = False) -> None:
    """InputError if a world is to plan from more context than it was trained to start from."""
    trained = world.evaluation.history
    lines = [] if history is None or history <= trained else [f"evaluation.history: {trained} != {history}"]
    what = "the world and the command disagree (world != command)"
    _refuse(lines, what, f"leave history out or give at most {trained}", force)


def _refuse(lines: list[str], what: str, advice: str, force: bool) -> None:
    """InputError with a diff, or a warning for each of its lines if forced."""
    if lines and not force:
        raise InputError(f"{what}: {'; '.join(lines)}; {advice}")
    for line in lines:
        log.warning("%s: %s; forced to go on", what, line)


def check_members(world: World, cost: Cost) -> None:
    """InputError if a cost over the members of an ensemble is asked of one world."""
    if cost.members and not hasattr(world, "rollouts"):
        raise InputError(
            f"the cost is over the members of an ensemble, but a {type(world).__name__} is one world; use "
            "jepa.models.ensemble.EnsembleWorld, or a cost without risk and disagreement"
        )
