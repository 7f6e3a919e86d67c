"""From a name to a task: which adapter serves an environment, and which options it declares."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium

from jepa.envs.adapter import Adapter
from jepa.envs.any_gymnasium import AnyGymnasium
from jepa.envs.metaworld import MetaWorld
from jepa.envs.mujoco_env import MujocoAdapter, is_mujoco, load_mujoco
from jepa.envs.ogbench_cube import OgbenchCube
from jepa.envs.point_maze import PointMaze
from jepa.envs.pool import LocalPool, WorkerPool
from jepa.envs.pusht import PushT
from jepa.envs.reacher import Reacher
from jepa.envs.task import AdapterTask, TwoRoomsTask
from jepa.errors import InputError, check_known, did_you_mean
from jepa.schema import EvalSpec, Task

logger = logging.getLogger(__name__)

TWO_ROOMS = "jepa/TwoRooms-v0"
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two_rooms": (TWO_ROOMS, {}),
    "two_rooms_random": (TWO_ROOMS, {"layout": "random"}),
    "pusht": ("gym_pusht/PushT-v0", {}),
    "reacher": ("Reacher-v5", {}),
    "point_maze": ("PointMaze_UMaze-v3", {}),
    "ogbench_cube": ("visual-cube-single-v0", {}),
    "metaworld_reach": ("Meta-World/MT1", {"task": "reach"}),
    "metaworld_reach_wall": ("Meta-World/MT1", {"task": "reach_wall"}),
}


@dataclass(frozen=True)
class Kind:
    """Environments that one adapter serves: those whose class lives at ``entry_point``.

    ``protocol`` may name options in braces.
    """

    entry_point: str
    adapter: Callable[..., Adapter]
    protocol: str


KINDS = (
    Kind("gym_pusht.", PushT, "pusht/swm25-50"),
    Kind("gymnasium.envs.mujoco.reacher_v5:", Reacher, "reacher/25-50"),
    Kind("gymnasium_robotics.envs.maze.point_maze:", PointMaze, "point_maze/25-50"),
    Kind("ogbench.manipspace.envs.cube_env:", OgbenchCube, "ogbench_cube/swm25-50"),
    Kind("<function register_mw_envs.", MetaWorld, "metaworld_{task}/expert100"),  # MetaWorld registers lambdas
)
# Packages of the extra `robots` that register environments when they are imported, and a prefix of their ids.
PROVIDERS = {
    "gym_pusht": ("gym_pusht/",),
    "gymnasium_robotics": ("PointMaze", "AntMaze", "Fetch", "Hand", "Adroit"),
    "ogbench": ("cube-", "visual-cube-"),
    "metaworld": ("Meta-World/",),
}


def make(env: str, num: int = 1, workers: int = 0, size: int = 64, **options: Any) -> Task:
    """B environments as one task.

    Args:
        env: a gymnasium id, or ``two_rooms``, ``two_rooms_random``, ``pusht``, ``reacher``, ``point_maze``,
            ``ogbench_cube``, ``metaworld_reach``, ``metaworld_reach_wall``.
        num: how many environments run together (B).
        workers: worker processes to spread them over; 0 steps them in this process. Two Rooms is one set of arrays
            and needs none.
        size: height and width of the frames in pixels.
        options: what this environment declares. Two Rooms: ``layout``, ``opposite``. MuJoCo: ``fast_render``.
            MetaWorld: ``task``. An environment without an adapter of its own: ``pixels``, ``proprio_key``,
            ``tolerance``, ``make_options``, ``idle``.

    Raises:
        InputError: the environment is unknown or not installed, or does not declare an option.
    """
    for name, value, least in (("num", num, 1), ("workers", workers, 0), ("size", size, 16)):
        if value < least:
            raise InputError(f"{name} was given {value}; the least is {least}")
    env_id, preset = ALIASES.get(env, (env, {}))
    if env_id == TWO_ROOMS:
        return _two_rooms(num, workers, size, preset | options)
    kind = _kind(env_id)
    options = _declared(env_id, kind.adapter, preset | options)
    build = partial(_build, kind.adapter, env_id, size, options)
    pool = WorkerPool(build, num, workers) if workers else LocalPool(build, range(num))
    return AdapterTask(pool, num, size, EvalSpec(env_id, options, protocol=kind.protocol.format(**options)))


def _two_rooms(num: int, workers: int, size: int, options: dict[str, Any]) -> Task:
    if workers:
        logger.info("Two Rooms steps all %d environments in one set of arrays: workers are not used", num)
    options = _declared(TWO_ROOMS, TwoRoomsTask, options)
    protocol = "two_rooms_random/v1" if options["layout"] == "random" else "two_rooms/v1"
    return TwoRoomsTask(num, size, **options, evaluation=EvalSpec(TWO_ROOMS, options, protocol=protocol))


def _declared(env_id: str, builder: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """All options that the builder declares, the given ones over the defaults: what a dataset records."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(builder).parameters.items()
        if name not in ("env_id", "size", "num", "evaluation")
    }
    check_known(f"option of {env_id}", options, known)
    for name, value in options.items():
        if isinstance(known[name], (bool, str)) and not isinstance(value, type(known[name])):
            wanted = type(known[name]).__name__
            raise InputError(f"option {name} of {env_id} was given {value!r}; expected {wanted}, e.g. {known[name]!r}")
    return known | options


def _kind(env_id: str) -> Kind:
    """The adapter for a gymnasium id; imports the package that registers it."""
    entry_point = _entry_point(env_id)
    for kind in KINDS:
        if entry_point.startswith(kind.entry_point):
            return kind
    return Kind(entry_point, MujocoAdapter if is_mujoco(entry_point) else AnyGymnasium, protocol="")


def _build(adapter: Callable[..., Adapter], env_id: str, size: int, options: dict[str, Any]) -> Adapter:
    """One environment, in whichever process: a spawned worker has registered nothing yet."""
    _register(env_id)
    return adapter(env_id=env_id, size=size, **options)


def _entry_point(env_id: str) -> str:
    _register(env_id)
    try:
        return str(gymnasium.spec(env_id).entry_point)
    except (gymnasium.error.Error, ImportError) as error:
        known = [*(full for full, _ in ALIASES.values()), *gymnasium.registry, *ALIASES]
        hint = did_you_mean(env_id, known) or f"; known short names: {', '.join(ALIASES)}"
        raise InputError(f"unknown environment {env_id!r}{hint}, or a gymnasium id (module:id to import)") from error


def _register(env_id: str) -> None:
    """Import the package that registers an id, where one is known to."""
    provider = next((name for name, ids in PROVIDERS.items() if env_id.startswith(ids)), None)
    if provider is None:
        return
    if importlib.util.find_spec(provider) is None:
        raise InputError(f"{env_id} needs the package {provider}; run pip install 'jepa[robots]'")
    if provider != "gym_pusht":
        load_mujoco()  # before the provider imports MuJoCo with its default backend
    try:
        gymnasium.register_envs(importlib.import_module(provider))
    except ImportError as error:
        raise InputError(f"{provider} cannot be imported ({error}); run pip install 'jepa[robots]'") from error
