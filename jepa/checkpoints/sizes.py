"""What leaves no trace in published weights: heads, frame size, frames and the form of the positions, by family.

What can be read from shapes is read; the rest is looked up by width in the table of published models, and said in the
log. Arguments override the table, and a model that it does not list needs them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import Tensor

from jepa.checkpoints.grids import grid_of
from jepa.checkpoints.keys import State, shape_of
from jepa.errors import InputError, check_choice
from jepa.models.positions import Form

log = logging.getLogger(__name__)

Family = Literal["ijepa", "vjepa", "vjepa2", "vjepa2_1"]

POSITIONS: dict[str, Form] = {
    "ijepa": "sincos_2d",
    "vjepa": "sincos_uniform",
    "vjepa2": "rotary_tiled",
    "vjepa2_1": "rotary_interpolated",
}
# attention heads of the published encoders, by width
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
WIDE_HEADS = {1408: 16, 1664: 16}  # I-JEPA's ViT-g and ViT-G
PREDICTOR_HEADS = 12  # of V-JEPA 2 and 2.1; I-JEPA and V-JEPA give the predictor as many as the encoder
PROBE_HEADS = 16  # whatever the width
SIDES = {"vjepa2": 256, "vjepa2_1": 384}  # where the name of a file says no other
FRAMES = {"ijepa": 1, "vjepa": 16, "vjepa2": 64, "vjepa2_1": 64}
NEEDED = ("family", "heads", "predictor_heads", "size", "frames", "positions")  # to build a model
NAMED_SIDES = re.compile(r"(?<!\d)(224|256|384|448)(?!\d)")  # vitg-384.pt, vjepa2-vitl-fpc64-256
NAMED_FRAMES = re.compile(r"fpc(\d+)")


@dataclass(frozen=True)
class Sizes:
    """What a published model must be told to be built; None where nobody said."""

    family: Family | None = None
    heads: int | None = None
    predictor_heads: int | None = None
    size: tuple[int, int] | None = None  # height and width of a frame in pixels
    frames: int | None = None  # of the longest video
    positions: Form | None = None
    # what no release has, and only files that jepa wrote say
    predictor_positions: Form | None = None  # where they are not the encoder's
    levels: tuple[int, ...] | None = None  # where they are not spaced as in the releases
    norm: bool | None = None  # the encoder ends with a layer norm without parameters
    eps: float | None = None  # of a probe's layer norms

    @property
    def predictor_form(self) -> Form | None:
        """The form of the predictor's positions."""
        return self.predictor_positions or self.positions

    def over(self, other: Sizes) -> Sizes:
        """This, and where it says nothing, the other."""
        mine = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(other, **{name: value for name, value in mine.items() if value is not None})

    def check(self) -> None:
        """InputError where a size cannot be."""
        if self.family is not None:
            check_choice("family", self.family, get_args(Family))
        for name in ("positions", "predictor_positions"):
            if (form := getattr(self, name)) is not None:
                check_choice(name, form, get_args(Form))
        for name in ("heads", "predictor_heads", "size", "frames"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) and len(value) == 2 and name == "size" else (value,)
            if value is not None and not all(isinstance(number, int) and number > 0 for number in numbers):
                raise InputError(f"{name} was given {value!r}; expected a whole number from 1 on, or two as a size")
        for name, fits, wanted in (
            ("levels", _are_numbers(self.levels), "numbers of blocks"),
            ("norm", isinstance(self.norm, bool), "true or false"),
            ("eps", isinstance(self.eps, float) and 0 < self.eps < 1, "a small number"),
        ):
            if (value := getattr(self, name)) is not None and not fits:
                raise InputError(f"the sizes of a model say {name}={value!r}; expected {wanted}: write the file again")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sizes:
        known = {item.name for item in fields(cls)}
        if unknown := set(data) - known:
            listed = sorted(map(str, unknown))
            raise InputError(f"the sizes of a model were given {listed}; known are {', '.join(sorted(known))}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(type(n) is int and n >= 0 for n in value)


def find_family(encoder: State, predictor: State | None) -> Family:
    """Which published model the state dicts (without prefixes) are.

    Positions that are stored mean V-JEPA, unless its predictor has more mask tokens than V-JEPA's two mask generators:
    early files of V-JEPA 2, which has ten, store positions that it does not use.
    """
    kernel = shape_of(encoder, "patch_embed.proj.weight", "a published encoder")
    if len(kernel) not in (4, 5):
        raise InputError(f"the patch embedding has shape {tuple(kernel)}; expected 4 axes of images, or 5 of videos")
    if len(kernel) == 4:
        return "ijepa"
    if any(key.startswith(("norms_block.", "patch_embed_img.")) for key in encoder):
        return "vjepa2_1"
    tokens = sum(key.startswith("mask_tokens.") for key in predictor or ())
    return "vjepa" if "pos_embed" in encoder and tokens <= 2 else "vjepa2"


def complete(given: Sizes, encoder: State, predictor: State | None, name: str) -> Sizes:
    """All sizes of an official encoder and predictor; ``name`` is the file's, which may say the frame size.

    Raises:
        InputError: sizes that the table does not know, and that must be given; or that the stored positions contradict.
    """
    given.check()
    family = given.family or find_family(encoder, predictor)
    width, _, *kernel = shape_of(encoder, "patch_embed.proj.weight", "a published encoder")
    tubelet, patch = (kernel[0] if len(kernel) == 3 else 1), kernel[-1]
    table = HEADS | WIDE_HEADS if family == "ijepa" else HEADS
    heads = given.heads or table.get(width)
    same, form = family in ("ijepa", "vjepa"), given.positions or POSITIONS[family]
    found = Sizes(
        family=family,
        heads=heads,
        predictor_heads=heads if same else _narrow_heads(predictor, width, table),
        positions=POSITIONS[family],
    )
    if form.startswith("sincos"):
        shape_of(encoder, "pos_embed", f"an encoder of {family}", axes=3)
        stored = _trained(encoder["pos_embed"], form, tubelet, patch, given, name)
        found = replace(found, **(stored or _stored(encoder["pos_embed"], tubelet, patch, given, FRAMES[family])))
    else:
        found = replace(found, **_named(name, family, width in table))
    found = given.over(found)
    missing = [name for name in NEEDED if getattr(found, name) is None]
    if predictor is None and "predictor_heads" in missing:
        missing.remove("predictor_heads")
    if missing:
        known = "" if width in table else f" (none of the published {', '.join(map(str, sorted(table)))})"
        raise InputError(
            f"{name} holds a {family} encoder of width {width}{known}, whose weights do not say {', '.join(missing)}; "
            f"give {', '.join(f'{word}=...' for word in missing)}"
        )
    assumed = {k: v for k, v in found.to_dict().items() if getattr(given, k) is None}
    if assumed:
        log.info("%s: assumed %s", name, ", ".join(f"{key}={value}" for key, value in assumed.items()))
    return found


def _narrow_heads(predictor: State | None, width: int, table: Mapping[int, int]) -> int | None:
    return PREDICTOR_HEADS if predictor is not None and width in table else None


def _trained(table: Tensor, form: Form, tubelet: int, patch: int, given: Sizes, name: str) -> dict[str, Any] | None:
    """Frame size and frames from the places that a table ``[1,tokens,width]`` holds; None where it is no such table.

    Positions of another grid would be those of other places: they are refused.
    """
    if (grid := grid_of(table[0], form)) is None:
        return None
    frames, size = grid[0] * tubelet, (grid[1] * patch, grid[2] * patch)
    if given.frames not in (None, frames) or given.size not in (None, size):
        asked = [f"{key}={value}" for key, value in (("size", given.size), ("frames", given.frames)) if value]
        raise InputError(
            f"{name} holds the positions that it was trained with, of {frames} frames of {size[0]}x{size[1]} pixels, "
            f"but was given {' and '.join(asked)}; leave that out (clips may still be shorter)"
        )
    return {"frames": frames, "size": size}


def _stored(table: Tensor, tubelet: int, patch: int, given: Sizes, frames: int) -> dict[str, Any]:
    """Frame size and frames from the number of stored positions, as far as it says them."""
    tokens = table.shape[1]
    if given.size is not None:
        per_frame = (given.size[0] // patch) * (given.size[1] // patch)
        if not per_frame or tokens % per_frame:
            height, width = given.size
            raise InputError(
                f"the weights hold positions of {tokens} tokens, which are no whole frames of {height}x{width} pixels "
                f"in patches of {patch}; give the size that they were trained with"
            )
        return {"frames": tokens // per_frame * tubelet}
    frames = given.frames or frames
    per_frame = tokens * tubelet // frames
    side = math.isqrt(per_frame)
    square = side * side * frames == tokens * tubelet
    return {"frames": frames if square else None, "size": (side * patch,) * 2 if square else None}


def _named(name: str, family: Family, published: bool) -> dict[str, Any]:
    """Frame size and frames from the name of a file, else as published."""
    side, frames = NAMED_SIDES.findall(name), NAMED_FRAMES.findall(name)
    found: dict[str, Any] = {}
    published = published and family in SIDES
    if side or published:
        found["size"] = (int(side[-1]) if side else SIDES[family],) * 2
    if frames or published:
        found["frames"] = int(frames[-1]) if frames else FRAMES[family]
    return found
