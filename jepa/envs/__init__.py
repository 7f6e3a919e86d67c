"""Environments with pixels and goals: Two Rooms, and any gymnasium environment behind an adapter.

Importing this package registers ``jepa/TwoRooms-v0`` with gymnasium.
"""

from __future__ import annotations

import gymnasium

from jepa.envs.catalogue import ALIASES, make

__all__ = ["ALIASES", "make"]

gymnasium.register(
    id="jepa/TwoRooms-v0",
    entry_point="jepa.envs.two_rooms_env:TwoRoomsEnv",
    max_episode_steps=80,
)
