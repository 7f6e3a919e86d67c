"""Poses and their differences: rotations compose in the base frame."""

from __future__ import annotations

import math

import torch

from jepa.models.poses import advance, euler, reckon, rotation

QUARTER = math.pi / 2


def test_quarter_turns():
    for angles, before, after in (
        ((QUARTER, 0, 0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ((0, QUARTER, 0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
        ((0, 0, QUARTER), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        ((QUARTER, 0, QUARTER), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),  # about x first: z is then left alone
    ):
        turned = rotation(torch.tensor(angles)) @ torch.tensor(before)
        assert torch.allclose(turned, torch.tensor(after), atol=1e-6), angles


def test_angles_come_back():
    angles = (torch.rand(1000, 3, dtype=torch.float64) - 0.5) * torch.tensor([2.0, 1.0, 2.0]) * math.pi * 0.999
    matrix = rotation(angles)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand_as(matrix))
    assert torch.allclose(euler(matrix), angles, atol=1e-9)


def test_a_motion_is_in_the_base_frame():
    """Turned about x, then by a quarter about z: in the base frame that is the matrix product from the left."""
    pose = torch.tensor([0.1, 0.2, 0.3, QUARTER, 0.0, 0.0, 0.5])
    delta = torch.tensor([0.1, 0.0, -0.1, 0.0, 0.0, QUARTER, 0.7])
    after = advance(pose, delta)
    assert torch.allclose(after[:3], torch.tensor([0.2, 0.2, 0.2]))
    assert torch.allclose(rotation(after[3:6]), rotation(delta[3:6]) @ rotation(pose[3:6]), atol=1e-6)
    assert after[6] == 1, "the gripper is closed at one"
    assert torch.allclose(advance(pose, torch.zeros(7)), pose, atol=1e-6)


def test_reckoning_is_advancing():
    pose, plan = torch.rand(2, 3, 7), 0.3 * torch.randn(2, 3, 4, 7)
    poses = reckon(pose, plan)
    assert poses.shape == (2, 3, 4, 7) and torch.equal(poses[..., 0, :], pose)
    for h in range(3):
        assert torch.equal(poses[..., h + 1, :], advance(poses[..., h, :], plan[..., h, :]))
