"""Where a robot's hand is after a motion: poses (x, y, z, three Euler angles, gripper) and their differences."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 7  # metres, radians about the fixed axes x, y, z in this order, closedness of the gripper from 0 to 1


def rotation(euler: Tensor) -> Tensor:
    """Angles [...,3] about the fixed axes x, then y, then z -> matrices [...,3,3]."""
    (cx, cy, cz), (sx, sy, sz) = euler.cos().unbind(-1), euler.sin().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def euler(matrix: Tensor) -> Tensor:
    """The inverse of :func:`rotation`, with the angle about y within a quarter turn."""
    about_x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    about_y = torch.atan2(-matrix[..., 2, 0], torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0]))
    about_z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([about_x, about_y, about_z], dim=-1)


def advance(pose: Tensor, delta: Tensor) -> Tensor:
    """Poses and differences [...,7] -> the poses after them: positions and gripper add, rotations compose.

    The rotation of the difference is in the base frame, R(after) = R(delta) R(before), as V-JEPA 2-AC defines it.
    """
    turned = euler(rotation(delta[..., 3:6]) @ rotation(pose[..., 3:6]))
    gripper = (pose[..., 6:] + delta[..., 6:]).clamp(0, 1)
    return torch.cat([pose[..., :3] + delta[..., :3], turned, gripper], dim=-1)


def reckon(pose: Tensor, action: Tensor) -> Tensor:
    """The present [...,7] and plans of differences [...,H,7] -> the poses [...,H,7] in which each action is taken."""
    poses = [pose]
    for h in range(action.shape[-2] - 1):
        poses.append(advance(poses[-1], action[..., h, :]))
    return torch.stack(poses, dim=-2)
