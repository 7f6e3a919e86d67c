"""Raw pixels as latents: averages of the frame, in order, and never mistaken for others."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.frozen import FrozenEncoder
from jepa.models.pixels import PixelEncoder
from jepa.schema import Sample
from jepa.tasks.features import fingerprint


def test_one_colour_stays_and_fine_stripes_become_grey():
    flat = torch.full((1, 2, 3, 32, 48), 200, dtype=torch.uint8)
    z = PixelEncoder(5, (32, 48))(flat)
    assert z.shape == (1, 2, 1, 75) and torch.allclose(z, torch.tensor(200 / 127.5 - 1), atol=1e-5)
    stripes = torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255  # a sample of every eighth pixel alone would be black, or white
    assert PixelEncoder(4, 32)(stripes).abs().max() < 0.05


def test_a_dot_is_where_it_was():
    video = torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)
    video[:, :, 1, 20:23, 13] = 255
    seen = PixelEncoder(8, 32)(video).view(3, 8, 8)
    assert torch.allclose(seen[[0, 2]], torch.tensor(-1.0)) and seen[1].argmax() == 5 * 8 + 3


def test_frames_lie_side_by_side_in_their_order():
    video = torch.randint(256, (2, 6, 3, 16, 16), dtype=torch.uint8)
    apart, pairs = PixelEncoder(4, 16)(video), PixelEncoder(4, 16, frames=2)(video)
    assert pairs.shape == (2, 3, 1, 96)
    assert torch.equal(pairs[:, :, 0], torch.cat([apart[:, 0::2, 0], apart[:, 1::2, 0]], dim=2))
    grey = PixelEncoder(4, 16, grey=True)(video)
    assert torch.allclose(grey, apart.unflatten(3, (3, 16)).mean(3), atol=1e-6)


def test_it_is_embedded_as_an_encoder_and_every_setting_is_another_one():
    world = FrozenEncoder(PixelEncoder(4, 16))
    assert world.specs.observation.height == 16 and not list(world.parameters())
    assert world.encode(Sample(video=torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))).shape == (1, 2, 1, 48)
    others = [PixelEncoder(4, 16), PixelEncoder(5, 16), PixelEncoder(4, 16, frames=2), PixelEncoder(4, 16, grey=True)]
    assert len({fingerprint(FrozenEncoder(other)) for other in others}) == 4
    assert fingerprint(FrozenEncoder(others[0])) == fingerprint(world)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="size=17"):
        PixelEncoder(17, 16)
    with pytest.raises(InputError, match="frames=0"):
        PixelEncoder(4, 16, frames=0)
    with pytest.raises(InputError, match="was given 3 frames: expected a multiple"):
        PixelEncoder(4, 16, frames=2)(torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="expects uint8"):
        PixelEncoder(4, 16)(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8))
