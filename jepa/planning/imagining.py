"""What a planner is asked: to reach a goal in the imagination of a world."""

from __future__ import annotations

import inspect
from functools import partial

import torch
from torch import Tensor

from jepa.planning.clock import Clock
from jepa.planning.costs import Cost
from jepa.schema import Dynamics, Problem, World


def wants_proprio(world: World) -> bool:
    """Whether rollouts of the world begin from proprioception too: it is their option ``proprio``."""
    return "proprio" in inspect.signature(world.rollout).parameters


def forecast_steps(world: World, z: Tensor, past: Tensor | None, virtual: Tensor, action: Tensor) -> Tensor:
    """All one-step forecasts along a virtual path at once: teacher forcing, of a world that has ``predict``.

    Args:
        world: its ``predict`` maps z [B,T,N,D] and raw actions [B,T,A] to what follows each
        z: context [B,T,N,D], the present last
        past: raw actions of the context [B,T-1,A]; None if T = 1
        virtual: the path [B,S,H,N,D], where virtual[:, :, h] stands after action h
        action: raw plans [B,S,H,A]

    Returns:
        [B,S,H,N,D]: step h forecasts virtual[:, :, h] from all that is before
    """
    before, plans = z.shape[1] - 1, action.shape[1]
    frames = torch.cat([z.unsqueeze(1).expand(-1, plans, -1, -1, -1), virtual[:, :, :-1]], dim=2)
    if past is not None:
        action = torch.cat([past.unsqueeze(1).expand(-1, plans, -1, -1), action], dim=2)
    return world.predict(frames.flatten(0, 1), action.flatten(0, 1))[:, before:].unflatten(0, action.shape[:2])


def imagined(
    world: World,
    cost: Cost,
    z: Tensor,
    goal: Tensor,
    past: Tensor | None,
    horizon: int,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    proprio: Tensor | None = None,
    clock: Clock | None = None,
) -> Problem:
    """What a planner is asked when it is to reach a goal in the imagination of a world.

    Args:
        world: what forecasts
        cost: what makes a forecast good
        z: context [B,T,N,D], the present last
        goal: latents of the goals [B,1,N,D]
        past: raw actions of the context [B,T-1,A]; None if T = 1
        horizon: H, model steps of a plan
        chunk: candidates per environment in one rollout; all by default
        device: where the world is
        generator: the planner's only source of chance
        proprio: of the context [B,T,P], for a world whose rollouts want it
        clock: told how long the stages ``rollout`` and ``cost`` take
    """
    space, clock = world.specs.action, clock or Clock(device)
    roll = world.rollouts if cost.members else world.rollout
    if proprio is not None:
        roll = partial(roll, proprio=proprio)
    roll = clock.timed("rollout", roll)

    @partial(clock.timed, "cost")
    def score(forecast: Tensor, action: Tensor) -> Tensor:
        return cost(forecast, goal, space.normalise(action))

    def price(action: Tensor) -> Tensor:
        parts = action.split(chunk or action.shape[1], dim=1)
        return torch.cat([score(roll(z, part, past), part) for part in parts], dim=1)

    dynamics = None
    if hasattr(world, "predict") and not cost.members and proprio is None:
        dynamics = Dynamics(
            lambda action: roll(z, action, past),
            clock.timed("rollout", partial(forecast_steps, world, z, past)),
            score,
        )
    return Problem(price, space, horizon, len(z), device, generator, dynamics)
