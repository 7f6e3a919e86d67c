"""Encoders: the contract, the statistics of pixels, what frozen means, and where weights may come from."""

from __future__ import annotations

import os

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.encoders import ConvNet, TimmBackbone, ViT
from jepa.testing import check_encoder

SMALL = {
    "conv": lambda: ConvNet(dim=12, size=32, channels=(8, 16, 24), hidden=16),
    "conv, no norm": lambda: ConvNet(dim=12, size=16, channels=(8, 8, 8), hidden=16, norm=False),
    "vit": lambda: ViT(dim=12, size=32, patch=8, width=16, depth=2, heads=2),
    "vit, grid": lambda: ViT(dim=16, size=16, patch=4, width=16, depth=1, heads=2, pool="none", norm=False),
    "resnet18": lambda: TimmBackbone("resnet18", 32, frozen=False),
    "efficientnet, grid": lambda: TimmBackbone("tf_efficientnet_lite0", 64, pool="none"),
    "timm vit, grid": lambda: TimmBackbone("vit_tiny_patch16_224", 32, pool="none"),
    "timm vit": lambda: TimmBackbone("vit_tiny_patch16_224", 32),
    "channels last": lambda: TimmBackbone("swin_tiny_patch4_window7_224", 64, pool="none"),
}


@pytest.mark.parametrize("name", SMALL)
def test_contract(name):
    torch.manual_seed(0)
    check_encoder(SMALL[name]())


def pixels(size, steps=2):
    return torch.randint(0, 256, (2, steps, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["conv", "vit, grid", "resnet18"])
def test_pixels_are_standardised_with_the_statistics_of_the_weights(name):
    encoder, seen = SMALL[name](), []
    encoder.features = lambda images: seen.append(images) or torch.zeros(len(images), 1, 12)
    video = pixels(encoder.size)
    encoder(video)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if name == "conv" else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = (video.flatten(0, 1) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(seen[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "vit", "timm vit"])
def test_norm_puts_latents_on_one_sphere(name):
    z = SMALL[name]().eval()(pixels(32))
    assert torch.allclose(z.mean(-1), torch.zeros(()), atol=1e-5)
    assert torch.allclose(z.square().sum(-1), torch.tensor(float(z.shape[-1])), rtol=0.05)


@pytest.mark.parametrize("name", ["conv", "resnet18"])
@pytest.mark.parametrize(
    "video",
    [torch.zeros(1, 1, 3, 32, 32), pixels(16), pixels(32)[:, 0], pixels(32)[..., :16]],
    ids=["float", "small", "unbatched", "narrow"],
)
def test_wrong_video_is_one_line(name, video):
    with pytest.raises(InputError, match="but expects uint8") as caught:
        SMALL[name]()(video)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ConvNet(size=40), "40"),
        (lambda: ViT(size=30, patch=8), "30"),
        (lambda: ViT(pool="max"), "'max'"),
        (lambda: TimmBackbone("resnet18", pool="max"), "'max'"),
        (lambda: TimmBackbone("resnet81"), "resnet18"),
        (lambda: TimmBackbone("resnet18.nothing_of_this_name"), "nothing_of_this_name"),
    ],
)
def test_wrong_arguments_are_one_line(make, named):
    with pytest.raises(InputError) as caught:
        make()
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_pooling_is_the_mean_of_the_grid():
    whole, pooled = (TimmBackbone("resnet18", 64, pool=pool, norm=False).eval() for pool in ("none", "mean"))
    pooled.load_state_dict(whole.state_dict())
    video = pixels(64)
    assert whole(video).shape[2] == 4
    assert torch.allclose(whole(video).mean(2, keepdim=True), pooled(video), atol=1e-5)


def test_channels_last_feature_maps_keep_their_places():
    encoder = TimmBackbone("swin_tiny_patch4_window7_224", 64, pool="none", norm=False)
    video = pixels(64, steps=1)
    images = encoder.scale * video.flatten(0, 1) + encoder.shift
    with torch.no_grad():
        expected = encoder.backbone.forward_features(images).flatten(1, 2)  # [n,h,w,D]
    assert encoder.grid == (2, 2) and torch.allclose(encoder(video)[:, 0], expected, atol=1e-5)


def test_prefix_tokens_are_left_out():
    encoder = TimmBackbone("vit_tiny_patch16_224", 32, pool="none", norm=False)
    video = pixels(32, steps=1)
    images = encoder.scale * video.flatten(0, 1) + encoder.shift
    with torch.no_grad():
        expected = encoder.backbone.forward_features(images)[:, 1:]
    assert torch.allclose(encoder(video)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_frozen_backbones_stay_as_they_are(name):
    encoder = TimmBackbone(name, 32, frozen=True).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    z = encoder(pixels(32))
    assert not z.requires_grad and not any(module.training for module in encoder.modules())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_free_backbones_learn():
    encoder = TimmBackbone("resnet18", 32, frozen=False)
    assert encoder.training and encoder.backbone.training
    before = encoder.backbone.bn1.running_mean.clone()
    z = encoder(pixels(32))
    (z * torch.randn_like(z)).sum().backward()
    assert encoder.backbone.conv1.weight.grad.any()
    assert not torch.equal(encoder.backbone.bn1.running_mean, before)


@pytest.fixture(scope="module")
def foreign():
    torch.manual_seed(5)
    return timm.create_model("resnet18").state_dict()  # with its classifier


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_come_from_a_file(foreign, tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    save_file(foreign, path) if suffix == "safetensors" else torch.save(foreign, path)
    encoder = TimmBackbone("resnet18", 32, weights=str(path))
    kept = encoder.backbone.state_dict()
    assert all(torch.equal(value, foreign[key]) for key, value in kept.items())
    assert set(foreign) - set(kept) == {"fc.weight", "fc.bias"}


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def _pickled(path, state):
    torch.save({"model": Payload()}, path)


def _truncated(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1000])


def _text(path, state):
    path.write_text("404: not found")


def _lacking(path, state):
    torch.save({key: value for key, value in state.items() if not key.startswith("layer4")}, path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("spoil", [_pickled, _truncated, _text, _lacking, lambda path, state: None])
def test_bad_weights_are_one_line_and_run_nothing(foreign, tmp_path, monkeypatch, spoil, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights.{suffix}"
    spoil(path, foreign)
    with pytest.raises(InputError) as caught:
        TimmBackbone("resnet18", 32, weights=str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


class Leaky(ConvNet):
    """Every frame sees the mean of the batch."""

    def features(self, images):
        z = super().features(images)
        return z + z.mean(0)


def test_the_contract_can_fail():
    with pytest.raises(AssertionError, match="changed the latents of earlier frames"):
        check_encoder(Leaky(8, 16))
    encoder = ConvNet(8, 16)
    encoder.convolutions.append(torch.nn.Dropout(0.5))
    check_encoder(encoder)
    encoder.features = lambda images: F.dropout(ConvNet.features(encoder, images), 0.5)
    with pytest.raises(AssertionError, match="other latents in evaluation mode"):
        check_encoder(encoder)
