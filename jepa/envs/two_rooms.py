"""Two Rooms: a dot, a wall, a door. Physics and rendering for B environments at once, in numpy.

The task of PLDM (arXiv:2502.14819) and EB-JEPA on the unit square: x grows to the right and y grows downwards, as in
the image. The centre of the dot moves in a straight line until a border or the wall stops it, and slides along what
it touched. All arrays are float32, so that a state that was read puts the environment back to the same pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jepa.errors import InputError

Array = NDArray[np.float32]

STEP = 0.06  # longest move of one step
RADIUS = 0.06  # a goal closer than this is reached
DOOR = 0.12  # half-width of the door
THICK = 0.02  # half-thickness of the wall, and the visible thickness of the borders
GAP = 1e-4  # what stays between the dot and what stopped it: more than float32 rounding, less than a pixel
CLEAR = 0.03  # starts and goals keep this from every wall, so that opposite rooms are never within RADIUS
BLOB = 1.8 / 64  # standard deviation of the dot: 1.8 px of 64
FIXED_WALL, FIXED_DOOR = 0.5, 0.35
RANDOM_WALL, RANDOM_DOOR = (0.3, 0.7), (0.15, 0.85)
FLOOR_COLOUR, WALL_COLOUR, DOT_COLOUR = (0, 0, 0), (0, 90, 220), (255, 90, 0)
STATE_NAMES = ("x", "y", "wall_x", "door_y")


def move(state: Array, action: Array) -> Array:
    """Where the dots go.

    Args:
        state: [B,4] of :data:`STATE_NAMES`.
        action: [B,2] in [-1,1]; longer vectors are shortened to norm 1. One unit is a step of 0.06.

    Returns:
        Positions [B,2] after one step.
    """
    x, y, wall, door = state.T
    length = np.maximum(np.linalg.norm(action, axis=1), 1.0)
    step = action * (STEP / length)[:, None]
    low, high = THICK + GAP, 1 - THICK - GAP
    new_x, new_y = np.clip(x + step[:, 0], low, high), np.clip(y + step[:, 1], low, high)
    new_x, new_y = _blocked(x, y, new_x, new_y, wall, door)
    return np.stack([new_x, new_y], axis=1).astype(np.float32)


def _blocked(x: Array, y: Array, new_x: Array, new_y: Array, wall: Array, door: Array) -> tuple[Array, Array]:
    """Stop the segments [B] at the wall, exactly.

    Seen along the direction of travel the wall is a slab -THICK <= u <= THICK. A segment that meets its near face
    beside the door stops there and keeps its motion along the wall; one that is in the doorway keeps between the
    jambs until it leaves at the far face.
    """
    way = np.where(new_x < x, -1.0, 1.0)
    u, new_u = way * (x - wall), way * (new_x - wall)
    slope = (new_y - y) / np.maximum(new_u - u, 1e-9)
    near, far = y + slope * (-THICK - u), y + slope * (THICK - u)
    stopped = (u <= -THICK) & (new_u > -THICK) & (np.abs(near - door) > DOOR)
    inside = (u < THICK) & (new_u > -THICK) & ~stopped
    jammed = inside & (np.abs(np.where(new_u >= THICK, far, new_y) - door) > DOOR)
    new_u = np.where(stopped, -THICK - GAP, new_u)
    return wall + way * new_u, np.where(jammed, np.clip(new_y, door - DOOR, door + DOOR), new_y)


def success(state: Array, goal: Array) -> NDArray[np.bool_]:
    """States and goals [B,>=2] -> [B]: the dot is within 0.06 of the goal."""
    return np.linalg.norm(state[:, :2] - goal[:, :2], axis=1) < RADIUS


def free(state: Array) -> NDArray[np.bool_]:
    """States [B,4] -> [B]: finite, a door within the walls, and the dot neither in the wall nor in a border."""
    x, y, wall, door = np.nan_to_num(state, nan=-1.0).T
    slack = np.float32(GAP)
    walls = (wall > 2 * THICK) & (wall < 1 - 2 * THICK) & (door > THICK) & (door < 1 - THICK)
    open_x = (np.abs(x - wall) >= THICK - slack) | (np.abs(y - door) <= DOOR + slack)
    within = (np.minimum(x, y) >= THICK - slack) & (np.maximum(x, y) <= 1 - THICK + slack)
    return walls & open_x & within


def draw(
    rng: np.random.Generator,
    layout: str = "fixed",
    opposite: bool = True,
    start: Array | None = None,
    goal: Array | None = None,
    wall: float | None = None,
    door: float | None = None,
) -> tuple[Array, Array]:
    """Draw the factors of variation that are not given: one start state and one goal state, [4] each.

    The generator is asked for the same eight numbers whatever is given, so fixing one factor leaves the others as
    they were.

    Args:
        rng: the source of randomness.
        layout: ``fixed`` (wall x = 0.5, door y = 0.35) or ``random`` (wall x in 0.3-0.7, door y in 0.15-0.85).
        opposite: put a start and a goal that are drawn into opposite rooms; otherwise each into either room.
        start, goal: positions [2].
        wall, door: x of the wall, y of the door.

    Raises:
        InputError: a given position or wall does not fit.
    """
    chance = rng.random(8)
    spread = layout == "random"
    wall = wall if wall is not None else _between(chance[0], *RANDOM_WALL) if spread else FIXED_WALL
    door = door if door is not None else _between(chance[1], *RANDOM_DOOR) if spread else FIXED_DOOR
    left = bool(chance[2] < 0.5) if goal is None else bool(goal[0] > wall)
    left = left if start is None else bool(start[0] < wall)
    goal_left = not left if opposite else bool(chance[3] < 0.5)
    ends = []
    for given, side, numbers in ((start, left, chance[4:6]), (goal, goal_left, chance[6:8])):
        place = _place(wall, side, numbers) if given is None else np.asarray(given, dtype=np.float32)
        ends.append(np.array([*place, wall, door], dtype=np.float32))
    for name, state in zip(("start", "goal"), ends):
        if not free(state[None])[0]:
            raise InputError(
                f"Two Rooms was given the {name} (x, y, wall_x, door_y) = {[round(float(v), 4) for v in state]}, which "
                f"lies in a wall; choose x and y within {THICK} and {1 - THICK}, outside the wall or in its door"
            )
    return ends[0], ends[1]


def _between(fraction: float, low: float, high: float) -> float:
    return low + (high - low) * fraction


def _place(wall: float, left: bool, chance: NDArray[np.float64]) -> tuple[float, float]:
    """A point of a room, from two numbers in [0,1)."""
    margin = THICK + CLEAR
    low, high = (margin, wall - margin) if left else (wall + margin, 1 - margin)
    return _between(chance[0], low, high), _between(chance[1], margin, 1 - margin)


def render_rooms(wall: Array, door: Array, size: int) -> NDArray[np.uint8]:
    """Walls and doors [B] -> empty rooms [B,3,size,size], anti-aliased by area."""
    edges = np.arange(size + 1) / size
    border = 1 - _cover(edges, np.array([THICK]), np.array([1 - THICK]))[0]
    solid = _cover(edges, wall - THICK, wall + THICK)[:, None, :]
    solid = solid * (1 - _cover(edges, door - DOOR, door + DOOR))[:, :, None]
    opacity = 1 - (1 - solid) * (1 - border)[None, :, None] * (1 - border)[None, None, :]
    floor, paint = (np.array(c, dtype=np.float64)[:, None, None] for c in (FLOOR_COLOUR, WALL_COLOUR))
    return np.rint(floor + opacity[:, None] * (paint - floor)).astype(np.uint8)


def _cover(edges: NDArray[np.float64], low: Array, high: Array) -> NDArray[np.float64]:
    """Fraction [B,n] of each of n pixels that the intervals [low, high] [B] cover."""
    overlap = np.minimum(edges[1:], high[:, None]) - np.maximum(edges[:-1], low[:, None])
    return np.clip(overlap, 0, None) / (edges[1] - edges[0])


def render_dots(rooms: NDArray[np.uint8], position: Array) -> NDArray[np.uint8]:
    """Rooms [B,3,S,S] and positions [B,2] -> new frames [B,3,S,S] with a Gaussian blob at sub-pixel precision."""
    count, _, size, _ = rooms.shape
    sigma = BLOB * size
    reach = int(np.ceil(3.4 * sigma))  # beyond it, the blob is below one grey level of 255
    corner = np.clip((position * size).astype(np.int64) - reach, 0, size - 2 * reach - 1)
    pixel = corner[:, :, None] + np.arange(2 * reach + 1)  # [B,2,n]
    profile = np.exp(-0.5 * ((pixel + 0.5 - position[:, :, None] * size) / sigma) ** 2).astype(np.float32)
    opacity = profile[:, 1, :, None] * profile[:, 0, None, :]
    frames = rooms.copy()
    flat = frames.reshape(count, 3, size * size)
    where = (pixel[:, 1, :, None] * size + pixel[:, 0, None, :]).reshape(count, 1, -1)
    behind = np.take_along_axis(flat, where, axis=2).astype(np.float32)
    colour = np.array(DOT_COLOUR, dtype=np.float32)[None, :, None]
    blended = behind + opacity.reshape(count, 1, -1) * (colour - behind) + 0.5
    np.put_along_axis(flat, where, blended.astype(np.uint8), axis=2)
    return frames
