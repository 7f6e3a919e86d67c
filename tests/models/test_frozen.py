"""An encoder alone embeds as a world model does, in Python and from YAML."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.errors import InputError
from jepa.models.frozen import FrozenEncoder
from jepa.models.video import VideoViT
from jepa.runtime import call
from jepa.schema import Sample


def test_it_is_the_encoder_and_never_learns():
    torch.manual_seed(0)
    encoder = VideoViT((8, 16), 4, 2, 8, 24, 1, 2)
    model, video = FrozenEncoder(encoder), torch.randint(0, 256, (2, 4, 3, 8, 16), dtype=torch.uint8)
    assert torch.equal(model.encode(Sample(video=video)), encoder(video))
    assert (model.specs.observation.height, model.specs.observation.width, model.specs.action.width) == (8, 16, 0)
    assert not model.train().encoder.training and not any(p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="has no video"):
        model.encode(Sample())


def test_yaml_builds_one_around_any_encoder(tmp_path):
    def verb(world: nn.Module) -> nn.Module:
        return world

    verb.__annotations__ = {"world": nn.Module}
    config = tmp_path / "embed.yaml"
    config.write_text(
        "world:\n  class_path: jepa.models.frozen.FrozenEncoder\n  init_args:\n    encoder:\n"
        "      class_path: jepa.models.encoders.TimmBackbone\n"
        "      init_args: {name: resnet18, size: 32, pool: none}\n"
    )
    model = call(verb, ["--config", str(config)])
    z = model.encode(Sample(video=torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)))
    assert z.shape == (1, 2, 1, 512) and isinstance(model, FrozenEncoder)
