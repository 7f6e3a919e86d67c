"""Our modules against the outputs of published ones: ``python tools/parity.py FILE.safetensors``.

A fixture holds the weights of a published module, inputs, and what the module made of them. Our module is built from
these weights, fed with these inputs, and its largest difference from any output is printed. Exit code 0 means below
the limit in float32, 1 above, 2 that the file is none that this tool can rebuild.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jepa.checkpoints.attentive import probe_from_published
from jepa.checkpoints.vjepa import encoder_from_published, predictor_from_published
from jepa.errors import InputError
from jepa.models.layers import layer_norm, take
from jepa.models.positions import Grid
from jepa.models.video import VideoViT
from jepa.objectives.prediction import Regression
from jepa.objectives.sigreg import epps_pulley
from jepa.schema import Prediction
from tools.families import KINDS as WORLDS
from tools.families import Config, Tensors, part, sides

LIMIT = 1e-5
OBJECTS = ("encoder", "predictor", "config")  # what the metadata says of modules
COUNTS = ("num_frames", "num_heads", "heads", "predictor_heads", "patch_size")  # of them what is read here
FLAGS = ("use_rope", "uniform_power", "use_extrinsics")


def masked(tensors: Tensors, config: Config) -> Tensors:
    """V-JEPA and V-JEPA 2: encoder, predictor and loss. Videos are [B,C,T,H,W] and standardised."""
    about, video = config["encoder"], tensors.pop("video").transpose(1, 2)
    state = part(tensors, "encoder.")
    added = "sincos_uniform" if about.get("uniform_power", True) else "sincos"
    positions = "rotary_tiled" if about.get("use_rope", "pos_embed" not in state) else added
    frames = max(about["num_frames"], video.shape[1])
    size = sides(about.get("img_size", video.shape[-2:]))
    encoder, _ = encoder_from_published(state, about["num_heads"], size, frames, positions)
    # by the convolution itself: the encoder's matrix product rounds the same sums in another order, 1e-5 apart
    tokens = encoder.patch_embed(video.transpose(1, 2)).flatten(2).transpose(1, 2)
    grid = encoder.clip_grid(video)
    context, target = (_index(tensors, name, math.prod(grid)) for name in ("context_indices", "target_indices"))
    made = {"full_tokens": encoder.encode(tokens, grid=grid), "context_tokens": encoder.encode(tokens, context, grid)}

    state, heads = part(tensors, "predictor."), config["predictor"]["num_heads"]
    asked = sorted(name for name in tensors if name.startswith("prediction_mask"))
    readings = []
    for grid in _predictor_grids(encoder):
        predictor, _ = predictor_from_published(state, heads, grid, positions)
        numbers = [int(name.removeprefix("prediction_mask")) for name in asked]
        readings.append([predictor(made["context_tokens"], context, target, number) for number in numbers])
    nearest = min(readings, key=lambda forecasts: sum(_distance(p, tensors[n]) for p, n in zip(forecasts, asked)))
    made |= zip(asked, nearest)
    # the loss is that of the first mask token
    h = take(layer_norm(made["full_tokens"]), target)
    first = Prediction(z=h, h=h[:, None], action=h, p=made["prediction_mask0"][:, None])
    return made | {"loss": Regression("l1")(first).view(1)}


def _index(tensors: Tensors, name: str, count: int) -> Tensor:
    """Take out token numbers [B,K] of clips of so many tokens."""
    index = tensors.pop(name)
    if index.dtype not in (torch.int32, torch.int64) or index.ndim != 2 or not index.numel():
        raise ValueError(f"{name} is {index.dtype} {tuple(index.shape)}, expected whole numbers [B,K]")
    if index.min() < 0 or index.max() >= count:
        raise ValueError(f"{name} goes from {index.min()} to {index.max()}, but a clip has {count} tokens, from 0")
    return index


def _predictor_grids(encoder: VideoViT) -> list[Grid]:
    """The grid of the encoder; and, where frames are not square, the one that the published predictor of V-JEPA 2 takes
    it for: as many columns as rows, and so more or fewer frames. A fixture does not say which of the two wrote it."""
    depth, rows, columns = encoder.positions.grid
    published = (-(-depth * columns // rows), rows, rows)
    return [encoder.positions.grid, *([published] if encoder.positions.rotary and rows != columns else [])]


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf


def attentive(tensors: Tensors, config: Config) -> Tensors:
    """The attentive probe of V-JEPA (depth 1) and V-JEPA 2 (depth 4)."""
    probe = probe_from_published(part(tensors, "classifier."), config["config"]["num_heads"]).eval()
    tokens = tensors.pop("tokens")
    # the linear layer reads every query where the fixture has the scores of all
    return {"logits": probe.linear(probe.pooler(tokens)) if tensors["logits"].ndim == 3 else probe(tokens)}


def sigreg(tensors: Tensors, config: Config) -> Tensors:
    """The statistic of SIGReg along given directions."""
    return {"statistic": epps_pulley(tensors.pop("latents"), tensors.pop("directions")).view(1)}


# the output that tells a fixture's kind -> how it is made
KINDS: dict[str, Callable[[Tensors, Config], Tensors]] = {
    "full_tokens": masked,
    "logits": attentive,
    "statistic": sigreg,
} | WORLDS


@torch.no_grad()
def differences(path: Path) -> dict[str, float]:
    """The largest absolute difference from each output of a fixture.

    Raises:
        InputError: the file is missing, damaged, or no fixture of a kind that can be rebuilt.
    """
    tensors, config = _read(path)
    kind = next((kind for output, kind in KINDS.items() if output in tensors), None)
    if kind is None:
        raise InputError(f"{path}: no such module is rebuilt here; known by one of the outputs {', '.join(KINDS)}")
    try:
        made = kind(tensors, config)
        found = {name: _largest(made[name], value) for name, value in tensors.items() if name in made}
    except KeyError as error:
        raise InputError(f"{path} lacks {error}, which {kind.__name__} fixtures have") from error
    except (ValueError, RuntimeError, IndexError, AssertionError) as error:  # sizes that contradict each other
        raise InputError(f"{path} is no {kind.__name__} fixture: {' '.join(str(error).split())[:300]}") from error
    if tensors.keys() != made.keys():
        odd = ", ".join(sorted(tensors.keys() ^ made.keys()))
        raise InputError(f"{path}: a fixture of this kind has outputs {', '.join(made)}; not in both: {odd}")
    return found


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"no fixture at {path}; give a .safetensors file")
    try:
        with safe_open(path, "pt") as file:
            config = {key: _parsed(value) for key, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no whole safetensors file with JSON metadata ({error}); write it again") from error
    for name in config.keys() & set(OBJECTS):
        _check(config[name], f"{path}: {name} in the metadata")
    return tensors, config


def _parsed(value: str) -> Any:
    return json.loads(value) if value.startswith("{") else value


def _check(about: Any, where: str) -> None:
    """Raise :class:`InputError` unless what the metadata says of a module is an object, and its sizes are sizes."""

    def size(value: Any) -> bool:
        return type(value) is int and value > 0

    def side(value: Any) -> bool:
        return size(value) or (isinstance(value, list) and len(value) == 2 and all(map(size, value)))

    if not isinstance(about, dict):
        raise InputError(f"{where} is {str(about)[:50]!r}, expected a JSON object of sizes; write the fixture again")
    rules = [(COUNTS, size, "a whole number above 0"), (FLAGS, lambda value: type(value) is bool, "true or false")]
    for names, allowed, expected in (*rules, (("img_size",), side, "one or two whole numbers above 0")):
        for name in names:
            if name in about and not allowed(about[name]):
                given = str(about[name])[:50]
                raise InputError(f"{where} says {name}={given!r}, expected {expected}; write the fixture again")


def _largest(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise InputError(f"an output of shape {tuple(theirs.shape)} is {tuple(ours.shape)} here; the layout is another")
    return (ours - theirs).abs().max().item()


def main(arguments: list[str]) -> int:
    """Compare, print one line, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.safetensors")
    path = parser.parse_args(arguments).file
    try:
        found = differences(path)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    # a difference that is not a number is no smaller than the limit
    worst = max(found, key=lambda name: (not found[name] < LIMIT, found[name]))
    passed = found[worst] < LIMIT
    verdict = "below" if passed else "NOT below"
    print(f"{path.name}: largest difference {found[worst]:.2e} ({worst}), {verdict} {LIMIT:.0e}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
