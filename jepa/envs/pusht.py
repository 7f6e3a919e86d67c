"""gym-pusht's PushT: an agent pushes a T-shaped block to the pose that the goal image shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.envs.adapter import Moment, Placeable, Traits, Vector, box_bounds, make_env, shrink
from jepa.schema import Sample

POSITION_TOLERANCE = 20.0  # pixels of the 512-pixel arena, agent and block jointly
ANGLE_TOLERANCE = math.pi / 9
AGENT_RADIUS = 15.0
RENDER = 256  # exactly half of the simulator's canvas, so that its bilinear resize is an average of 2x2 pixels


def success(state: Tensor, goal: Tensor) -> Tensor:
    """States and goals [B,5] -> [B]: DINO-WM's test, positions within 20 px jointly and angle within pi/9."""
    apart = torch.linalg.vector_norm(state[..., :4] - goal[..., :4], dim=-1)
    turn = torch.remainder(state[..., 4] - goal[..., 4] + math.pi, 2 * math.pi) - math.pi
    return (apart < POSITION_TOLERANCE) & (turn.abs() < ANGLE_TOLERANCE)


def stay(sample: Sample) -> Tensor:
    """The agent's present position [B,2]: the action is the position to go to."""
    assert sample.proprio is not None, "PushT's idle action is the agent's position, which is its proprioception"
    return sample.proprio[:, -1].clone()


class PushT(Placeable):
    """``gym_pusht/PushT-v0``. State: agent x and y, block x and y, block angle. Proprioception: agent x and y.

    Starts and goals are drawn as the simulator draws its starts, without those where the agent is inside the block.
    The simulator's own light green target stays where it always is, in the present and in the goal image; covering
    it ends nothing. Frames are its observation, not ``render()``, which would mark the last action with a cross and
    fails below 96 pixels.

    Args:
        env_id: gymnasium id.
        size: height and width of the frames in pixels.
    """

    def __init__(self, env_id: str = "gym_pusht/PushT-v0", size: int = 64) -> None:
        super().__init__()
        self.size = size
        render = RENDER if size <= RENDER else 2 * RENDER
        self.env = make_env(
            env_id,
            obs_type="pixels_agent_pos",
            render_mode="rgb_array",
            observation_width=render,
            observation_height=render,
        )
        self._seen: dict[str, Any] = {}
        names = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
        self.traits = Traits(*box_bounds(env_id, self.env.action_space), names, 2, success, stay)

    @property
    def simulator(self) -> Any:
        return self.env.unwrapped

    def draw(self) -> tuple[Vector, Vector]:
        return self._draw_clear(), self._draw_clear()

    def _draw_clear(self) -> Vector:
        while True:
            agent, block = self.rng.integers(50, 450, 2), self.rng.integers(100, 400, 2)
            state = np.array([*agent, *block, self.rng.uniform(0, 2 * np.pi)], dtype=np.float32)
            self.place(state, state)
            point = tuple(float(v) for v in agent)
            if all(shape.point_query(point).distance > AGENT_RADIUS for shape in self.simulator.block.shapes):
                return state

    def place(self, state: Vector, goal: Vector) -> None:
        values = [float(v) for v in state]
        self.env.reset(options={"reset_to_state": values})
        # The simulator's reset turns the block about its centre of mass after placing it, which moves it.
        agent, block = self.simulator.agent, self.simulator.block
        agent.position, agent.velocity = values[:2], (0.0, 0.0)
        block.angle, block.velocity, block.angular_velocity = values[4], (0.0, 0.0), 0.0
        block.position = values[2:4]
        for body in (agent, block):
            self.simulator.space.reindex_shapes_for_body(body)
        self._seen = self.simulator.get_obs()

    def look(self, reward: float = 0.0, ended: bool = False) -> Moment:
        agent, block = self.simulator.agent, self.simulator.block
        state = np.array([*agent.position, *block.position, block.angle % (2 * math.pi)], dtype=np.float32)
        return Moment(shrink(self._seen["pixels"], self.size), state, state[:2].copy(), reward, ended)

    def advance(self, action: Vector) -> tuple[float, bool]:
        self._seen, reward, _, _, _ = self.env.step(np.asarray(action, dtype=np.float64))
        return float(reward), False
