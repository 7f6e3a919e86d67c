"""Context encoders that look at one frame at a time: a small conv net, a small ViT, and any timm backbone."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.models.layers import Block, initialise, layer_norm, run
from jepa.models.packaged import packaged_weights
from jepa.models.positions import sincos_2d
from jepa.models.weights import fill, read_state


class Encoder(nn.Module):
    """uint8 video ``[B,T,C,H,W]`` to latents ``[B,T,N,D]``.

    Children implement ``features``: standardised images [n,C,H,W] to tokens [n,N,D]. Pixels become floats here, on
    the device, and nowhere else: the encoder is the one that knows the statistics its weights expect.
    """

    dim: int  # D
    grid: tuple[int, int]  # rows and columns of tokens in a frame; (1, 1) when pooled
    frozen: bool = False

    def __init__(
        self, size: int | tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], norm: bool
    ) -> None:
        super().__init__()
        self.size = size
        self.frame: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)  # height and width
        self.norm = norm
        # one multiplication and one addition per pixel instead of three
        scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", -255 * torch.tensor(mean).view(-1, 1, 1) * scale, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must turn images [n,C,H,W] into tokens [n,N,D]")

    def freeze(self) -> None:
        """Stop learning for good: no gradient, and evaluation mode whatever the trainer says."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        # batch norm statistics and dropout of frozen weights must not move
        return super().train(mode and not self.frozen)

    @property
    def width(self) -> int:
        """Of :meth:`latents`: levels*D."""
        return self.dim

    def fits(self, height: int, width: int) -> bool:
        """Whether frames of this height and width can be encoded."""
        return (height, width) == self.frame

    def standardise(self, video: Tensor) -> Tensor:
        """uint8 [B,T,C,H,W] to floats of the same shape, with the statistics that the weights expect."""
        self._check(video)
        return torch.addcmul(self.shift, video.to(self.scale.dtype), self.scale)

    def _check(self, video: Tensor) -> None:
        if video.dtype != torch.uint8 or video.ndim != 5 or not self.fits(*video.shape[-2:]):
            height, width = self.frame
            raise InputError(
                f"the encoder was given {video.dtype} video of shape {tuple(video.shape)}, but expects uint8 "
                f"[B,T,C,{height},{width}]; set data.size or the encoder's size so that both agree"
            )

    def forward(self, video: Tensor) -> Tensor:
        z = self.features(self.standardise(video).flatten(0, 1))
        return (layer_norm(z) if self.norm else z).unflatten(0, video.shape[:2])

    def latents(self, video: Tensor) -> Tensor:
        """What a target is made of: [B,T,N,levels*D] where an encoder has several levels, else what forward gives."""
        return self(video)

    @property
    def depth(self) -> int:
        """How many blocks :meth:`layers` can tell apart; 0 of an encoder that is no transformer."""
        return 0

    def layers(self, video: Tensor, numbers: Sequence[int]) -> Tensor:
        """uint8 video [B,T,C,H,W] -> what came out of the blocks of these numbers, side by side: [B,T,L*N,D].

        ``numbers`` rise, from 0 to depth - 1. Each layer is normalised as the last one is, whose tokens are those of
        ``forward``.
        """
        found = self.outputs(self.standardise(video).flatten(0, 1), numbers)
        return torch.cat([layer_norm(z) if self.norm else z for z in found], dim=1).unflatten(0, video.shape[:2])

    def outputs(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Standardised images [n,C,H,W] to the tokens [n,N,D] behind each of these blocks."""
        raise InputError(f"{type(self).__name__} gives its last layer only: leave layers out, or embed a transformer")


class ConvNet(Encoder):
    """Strided convolutions with group norm, flattened into one vector per frame: N = 1.

    Args:
        dim: D, the width of the latent.
        size: height and width of a frame in pixels, a multiple of 16.
        channels: of the three convolutions, multiples of 8. The first has stride 4: with two of stride 2 in its
            place a CPU trains half as fast.
        hidden: width of the layer between the convolutions and the latent.
        norm: end with a layer norm without parameters.
    """

    def __init__(
        self,
        dim: int = 64,
        size: int = 64,
        channels: tuple[int, int, int] = (16, 32, 64),
        hidden: int = 256,
        norm: bool = True,
    ) -> None:
        super().__init__(size, (0.5,) * 3, (0.5,) * 3, norm)
        if size % 16:
            raise InputError(f"ConvNet was given size {size}, but halves four times; use a multiple of 16")
        self.dim, self.grid = dim, (1, 1)
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, kernel, stride in zip(channels, (7, 3, 3), (4, 2, 2)):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)]
            layers += [nn.GroupNorm(min(8, outputs // 4), outputs), nn.GELU()]
            inputs = outputs
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(inputs * (size // 16) ** 2, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def features(self, images: Tensor) -> Tensor:
        return self.head(self.convolutions(images).flatten(1))[:, None]


class ViT(Encoder):
    """Vision transformer (Dosovitskiy et al. 2021) with fixed sine-cosine positions and no class token.

    Args:
        dim: D, the width of the latent; a linear map follows when it differs from ``width``.
        size: height and width of a frame in pixels.
        patch: height and width of a patch in pixels.
        width: of the transformer.
        depth: number of blocks.
        heads: attention heads.
        pool: "mean" gives one token per frame, "none" keeps the grid.
        norm: end with a layer norm without parameters.
    """

    def __init__(
        self,
        dim: int = 192,
        size: int = 64,
        patch: int = 8,
        width: int = 192,
        depth: int = 4,
        heads: int = 3,
        pool: str = "mean",
        norm: bool = True,
    ) -> None:
        super().__init__(size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), norm)
        if size % patch:
            raise InputError(f"ViT was given size {size} and patch {patch}; the size must be a multiple of the patch")
        _check_pool(pool)
        side = size // patch
        self.dim, self.grid, self.pool = dim, ((1, 1) if pool == "mean" else (side, side)), pool
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.register_buffer("position", sincos_2d((side, side), width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, dim) if dim != width else nn.Identity()
        self.apply(initialise)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def features(self, images: Tensor) -> Tensor:
        return self.outputs(images, [self.depth - 1])[0]

    def outputs(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position
        return [self._finish(found) for found in run(self.blocks, x, levels=numbers)]

    def _finish(self, x: Tensor) -> Tensor:
        x = self.final_norm(x)
        return self.head(x.mean(1, keepdim=True) if self.pool == "mean" else x)


class TimmBackbone(Encoder):
    """Any timm backbone, frame by frame.

    Args:
        name: a timm model name, e.g. "tf_efficientnet_lite0" or "vit_small_patch14_dinov2.lvd142m".
        size: height and width of a frame in pixels.
        weights: path of a state dict for that timm model (.pth or .safetensors), loaded strictly and without running
            code; "package" for those that a pip package ships (tf_efficientnet_lite0: jepa-worlds[pretrained]); None
            leaves the random initialisation.
        pool: "mean" gives one token per frame, "none" keeps the grid (without class and register tokens).
        frozen: no gradient and always in evaluation mode, whatever the trainer says.
        norm: end with a layer norm without parameters.
        layer: the stage (of convolutional networks) or block whose output is the latent; null for the last. Earlier
            stages have finer grids.
    """

    def __init__(
        self,
        name: str,
        size: int = 224,
        weights: str | None = None,
        pool: str = "mean",
        frozen: bool = True,
        norm: bool = True,
        layer: int | None = None,
    ) -> None:
        _check_pool(pool)
        config = _pretrained_config(name)
        super().__init__(size, config.mean, config.std, norm)
        # models of a fixed input size (ViTs) must be told the size; convolutional ones take any
        self.backbone = timm.create_model(
            name, num_classes=0, **({"img_size": size} if config.fixed_input_size else {})
        )
        self.pool, self.layer = pool, layer
        if weights is not None:
            _load_weights(self.backbone, name, weights, config.classifier)
        with torch.no_grad():
            feature_map = self._map(self.backbone.eval(), torch.zeros(1, 3, size, size))
        self.backbone.train()
        self.grid = (1, 1) if pool == "mean" else self._grid(feature_map)
        self.dim = self.backbone.num_features if layer is None else feature_map.shape[1]
        if frozen:
            self.freeze()

    def _grid(self, feature_map: Tensor) -> tuple[int, int]:
        if feature_map.ndim == 4:
            return tuple(self._channels_first(feature_map).shape[-2:])
        return tuple(self.backbone.patch_embed.grid_size)

    def _channels_first(self, x: Tensor) -> Tensor:
        foreign = self.layer is None and getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        return x.movedim(-1, 1) if foreign else x

    def _map(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """What the backbone, or its chosen layer, makes of images [n,C,H,W]: a feature map, or tokens."""
        if self.layer is None:
            return backbone.forward_features(images)
        if not 0 <= self.layer < self.depth:
            raise InputError(
                f"layer {self.layer} of timm's {type(backbone).__name__} was asked for; it has 0 to {self.depth - 1}"
            )
        options = {"indices": [self.layer], "norm": True, "stop_early": True, "output_fmt": "NCHW"}
        return backbone.forward_intermediates(images, **options, intermediates_only=True)[0]

    @property
    def depth(self) -> int:
        return len(getattr(self.backbone, "feature_info", ()))

    def outputs(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        options = {"indices": list(numbers), "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            try:
                maps = self.backbone.forward_intermediates(images, **options)
            except (AttributeError, TypeError, AssertionError) as error:  # each family of timm refuses in its own way
                name = type(self.backbone).__name__
                raise InputError(f"timm's {name} gives no layers of equal form ({error}): leave layers out") from error
        if {tuple(found.shape[1:]) for found in maps} != {(self.dim, *maps[-1].shape[2:])}:
            given = ", ".join("x".join(map(str, found.shape[1:])) for found in maps)
            raise InputError(
                f"layers {list(numbers)} of {type(self.backbone).__name__} differ in form ({given}), expected "
                f"the last's {self.dim} channels in each: leave layers out, or embed a plain transformer"
            )
        found = [one.flatten(2).transpose(1, 2) for one in maps]
        return [x.mean(1, keepdim=True) for x in found] if self.pool == "mean" else found

    def features(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self._map(self.backbone, images)
        if x.ndim == 4:  # a feature map: [n,D,h,w], or [n,h,w,D] of windowed transformers
            x = self._channels_first(x).flatten(2).transpose(1, 2)
        else:
            x = x[:, self.backbone.num_prefix_tokens :]
        return x.mean(1, keepdim=True) if self.pool == "mean" else x


def _check_pool(pool: str) -> None:
    if pool not in ("mean", "none"):
        raise InputError(f"pool was given {pool!r}; use 'mean' (one token per frame) or 'none' (the grid)")


def _pretrained_config(name: str) -> timm.models.PretrainedCfg:
    """What timm knows of a model: the statistics of its pixels, whether its input size is fixed, its classifier."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"timm has no model {name!r}; near are {', '.join(near) or 'none'} (timm.list_models())")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"timm cannot build {name!r}: {error} See timm.list_pretrained().") from error


def _load_weights(backbone: nn.Module, name: str, weights: str, classifier: str | tuple[str, ...] | None) -> None:
    """Load a timm state dict, or a package's, without its classifier. Nothing in the file can run code."""
    remedy = "give a timm state dict, saved with safetensors or torch.save(model.state_dict(), ...)"
    path = Path(weights)
    if weights == "package":
        state, path = packaged_weights(name)
    else:
        state = read_state(path, "the timm model", remedy)
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    fill(backbone, kept, path, "the timm model")
