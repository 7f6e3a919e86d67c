"""PLDM's and EB-JEPA's parts: a conv net with pools, and a unit whose hidden state is the latent."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.impala import ImpalaNet
from jepa.models.recurrent import RecurrentPredictor
from jepa.testing import check_encoder, check_predictor


@pytest.mark.parametrize("group_norm", [False, True])
@pytest.mark.parametrize("size", [16, 65])  # Two Rooms was published with 65 pixels
def test_the_encoder_keeps_its_promises(size, group_norm):
    torch.manual_seed(0)
    check_encoder(ImpalaNet(12, size, (4, 8), 1, group_norm))


def test_group_norm_is_in_every_convolution_of_the_blocks():
    counts = [
        sum(isinstance(part, torch.nn.GroupNorm) for part in ImpalaNet(12, 16, (4, 8, 8), 2, group_norm).modules())
        for group_norm in (False, True)
    ]
    assert counts == [0, 12]


@pytest.mark.parametrize("channels", [(), (16, 6), (0, 8)])
def test_channels_that_cannot_be_are_refused(channels):
    with pytest.raises(InputError, match="multiples of 4"):
        ImpalaNet(12, 16, channels)


def test_group_norm_has_equal_groups():
    with pytest.raises(InputError, match=r"\(8, 36\); group_norm expects multiples of 8 from 32 on"):
        ImpalaNet(12, 16, (8, 36), group_norm=True)
    assert ImpalaNet(12, 16, (8, 36), 1).stacks and ImpalaNet(12, 16, (20, 40), 1, group_norm=True).stacks


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_the_predictor_keeps_its_promises(tokens, residual, norm):
    torch.manual_seed(0)
    made = RecurrentPredictor(8, tokens, residual, norm)
    made.bind(3)
    check_predictor(made, 3)


def test_it_is_the_unit_of_the_paper():
    """Cho et al. 2014: reset and update gates over the latent as hidden state and the action as input."""
    torch.manual_seed(0)
    made = RecurrentPredictor(4, norm=False)
    made.bind(2)
    z, action, cell = torch.randn(5, 1, 1, 4), torch.randn(5, 1, 2), made.cell
    given = (action[:, 0] @ cell.weight_ih.T + cell.bias_ih).chunk(3, -1)
    held = (z[:, 0, 0] @ cell.weight_hh.T + cell.bias_hh).chunk(3, -1)
    reset, update = (given[0] + held[0]).sigmoid(), (given[1] + held[1]).sigmoid()
    proposed = (given[2] + reset * held[2]).tanh()
    expected = (1 - update) * proposed + update * z[:, 0, 0]
    assert torch.allclose(made(z, action)[:, 0, 0], expected, atol=1e-6)
    made.residual = True
    assert torch.allclose(made(z, action)[:, 0, 0], z[:, 0, 0] + expected, atol=1e-6)
