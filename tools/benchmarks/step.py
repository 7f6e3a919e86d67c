"""A training step of a masked model: ours against the published way, at identical losses."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from jepa.errors import InputError, check_choice
from jepa.masks import Grid, MaskGenerator, Masks, MultiBlock
from jepa.models.masked import MaskedJEPA, MaskPredictor
from jepa.models.targets import EMA
from jepa.models.video import VideoViT
from jepa.objectives.prediction import Regression
from jepa.optim import Optimizer, parameter_groups
from jepa.schema import Mask
from jepa.tasks.counting import count
from tools.benchmarks import measure
from tools.benchmarks.reference import Published

Shape = tuple[int, int, int]  # width, depth, heads
SIZES: dict[str, tuple[Shape, Shape]] = {  # encoder and predictor
    "tiny": ((48, 2, 3), (24, 2, 2)),  # to try the tool
    "vit_s": ((384, 12, 6), (384, 12, 12)),
    "vit_b": ((768, 12, 12), (384, 12, 12)),
    "vit_l": ((1024, 24, 16), (384, 12, 12)),
}
GENERATORS = ((8, (0.15, 0.15)), (2, (0.7, 0.7)))  # of V-JEPA: blocks, and their share of a frame
LIMIT = 1e-5  # of the difference of the losses, in float32
CHECKED = 2  # steps whose losses are compared
MOMENTUM = 0.998
KERNELS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_", "mkldnn::_linear")  # of torch
LR, DECAY = 1e-4, 0.04

Positions = Literal["rotary_interleaved", "rotary_tiled"]


def generators() -> list[MaskGenerator]:
    """Short-range and long-range masks."""
    return [MultiBlock(blocks, scale) for blocks, scale in GENERATORS]


@dataclass(frozen=True)
class Setting:
    """What both ways compute."""

    size: int
    frames: int
    batch: int
    positions: Positions
    device: str
    bfloat16: bool
    compile: bool

    def world(self, name: str) -> MaskedJEPA:
        (dim, depth, heads), (width, layers, few) = SIZES[name]
        encoder = VideoViT(self.size, self.frames, dim=dim, depth=depth, heads=heads, positions=self.positions)
        grid, count = encoder.positions.grid, len(GENERATORS)
        predictor = MaskPredictor(dim, grid, count, width, layers, few, positions=self.positions)
        return MaskedJEPA(encoder, predictor, EMA(MOMENTUM, MOMENTUM))

    def masks(self, grid: Grid) -> list[Mask]:
        return [mask.to(self.device) for mask in Masks(generators())(torch.arange(self.batch), grid)]

    def precision(self) -> AbstractContextManager:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bfloat16)


def ours(
    world: MaskedJEPA, video: Tensor, masks: list[Mask], setting: Setting, compiled: bool = False
) -> Callable[[int], Tensor]:
    """A step of the library: uint8 pixels, one optimiser, nobody waits for the loss."""
    objective = Regression("l1")
    optimizer = Optimizer(lr=LR, weight_decay=DECAY, warmup=0.0, final=1.0).build(world, 10**6)["optimizer"]
    forward = torch.compile(world) if compiled else world

    def step(number: int) -> Tensor:
        with setting.precision():
            predictions = forward(video, masks)
            loss = sum(objective(prediction) for prediction in predictions) / len(predictions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        world.target.update(world.encoder, 0.0)
        return loss.detach()

    return step


def published(model: Published, video: Tensor, masks: list[Mask], setting: Setting) -> Callable[[int], float]:
    """The same step the published way: its pixels come as standardised floats, and it reads the loss at once."""
    groups = [group for part in (model.encoder, model.predictor) for group in parameter_groups(part, DECAY)]
    optimizer = torch.optim.AdamW(groups, lr=LR)

    def step(number: int) -> float:
        with setting.precision():
            loss = model(video, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.follow(MOMENTUM)
        return float(loss.detach())

    return step


def compare(name: str, setting: Setting, repeats: int) -> dict[str, Any]:
    """Measure one model: seconds of a step in each way, the ratios, and the FLOP/s that ours reaches uncompiled."""
    torch.manual_seed(0)
    world = setting.world(name).to(setting.device)
    masks = setting.masks(world.encoder.positions.grid)
    shape = (setting.batch, setting.frames, 3, setting.size, setting.size)
    video = torch.randint(0, 256, shape, dtype=torch.uint8).to(setting.device)
    reference = Published(world).to(setting.device)
    floats = world.encoder.standardise(video).transpose(1, 2).contiguous()
    ways = {
        "published": published(reference, floats, masks, setting),
        "ours": ours(world, video, masks, setting),
    }
    if setting.compile:
        ways["compiled"] = ours(copy.deepcopy(world), video, masks, setting, compiled=True)
    difference = _difference(ways, setting)
    times = measure.interleaved(ways, repeats, setting.device)
    flops = _flops(name, setting, masks)
    product = measure.matrix_product(setting.device, torch.bfloat16 if setting.bfloat16 else torch.float32)
    reached = measure.summary(flops / times["ours"].wall)
    beside = {"published": times["published"], "ours": times["compiled"]} if setting.compile else None
    kernels = _kernels(ways["ours"]) if setting.device == "cpu" else None
    return measure.compared(times) | {
        "compiled": beside and measure.compared(beside),
        "model": name,
        "tokens": [[mask.context.shape[1], mask.target.shape[2]] for mask in masks],
        "largest difference of the losses": difference,
        "flops of a step": flops,
        "flops per second": reached,
        "flops per second of a matrix product": product,
        "share of a matrix product": {key: value / product for key, value in reached.items()},
        "share of our step in kernels of torch": kernels,
    }


def _kernels(step: Callable[[int], Tensor]) -> float:
    """Share of a step on the CPU that torch's products and attention take: what is around them cannot save more."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(CHECKED)
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(time for key, time in spent.items() if key.startswith(KERNELS)) / sum(spent.values())


def _difference(ways: dict[str, Callable[[int], Tensor | float]], setting: Setting) -> float:
    """Of the losses of the first steps; what is measured must compute the same."""
    pairs = [[float(step(number)) for step in ways.values()] for number in range(CHECKED)]
    worst = max(abs(theirs - loss) for theirs, *losses in pairs for loss in losses)
    assert setting.bfloat16 or worst < LIMIT, f"the losses differ by {worst}: {pairs}"
    return worst


def _flops(name: str, setting: Setting, masks: list[Mask]) -> float:
    """Of our step; in the published way the model asks for no fewer."""
    meta = torch.device("meta")
    with meta:
        world = setting.world(name)
        video = torch.empty(1, setting.frames, 3, setting.size, setting.size, dtype=torch.uint8)
    one = [Mask(mask.context[:1].to(meta), mask.target[:1].to(meta)) for mask in masks]
    return setting.batch * count(world, lambda: world(video, one), torch.float32).work.total


def step(
    models: list[str] = ["vit_s", "vit_b"],
    batch: int = 1,
    size: int = 224,
    frames: int = 16,
    positions: Positions = "rotary_interleaved",
    threads: int = 1,
    repeats: int = 7,
    device: str = "cpu",
    bfloat16: bool = False,
    compile: bool = True,
    kept: bool = False,
    out: Path | None = None,
) -> str:
    """Compare training steps: forward, backward, AdamW and the average of the weights, under 8 + 2 block masks.

    Args:
        models: tiny, vit_s, vit_b, vit_l
        batch: clips of a step
        size: height and width of a frame in pixels
        frames: of a clip
        positions: rotary_interleaved (V-JEPA 2.1), or rotary_tiled (V-JEPA 2)
        threads: of torch on the CPU
        repeats: measured steps of each way
        device: cpu or cuda
        bfloat16: compute matrix products in bfloat16 (autocast); the losses are then reported, not checked
        compile: measure our model compiled with torch.compile too, as `--model.compile=inductor` of a fit does it
        kept: both ways keep freed memory, as every command of jepa does
        out: a JSON file to write
    """
    for name in models:
        check_choice("models", name, SIZES)
    if batch < 1 or repeats < 2:
        raise InputError(f"batch={batch} and repeats={repeats}: expected at least 1 clip and 2 repetitions")
    if compile and device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise InputError("torch.compile found no C++ compiler here: install g++, or set compile=false")
    setting = Setting(size, frames, batch, positions, device, bfloat16, compile)
    measure.allocate(kept)
    with measure.threads(threads):
        results = [compare(name, setting, repeats) for name in models]
        measure.write(out, {"benchmark": "step", "results": results, "kept": kept, "about": measure.about(device)})
    return "\n".join(_told(result, setting) for result in results)


def _told(result: dict[str, Any], setting: Setting) -> str:
    product, compiled = result["flops per second of a matrix product"] / 1e9, result["compiled"]
    kernels = result["share of our step in kernels of torch"]
    return measure.table(
        f"{result['model']}, {setting.batch} clips of {setting.frames} frames of {setting.size} px on {setting.device}",
        [
            *measure.lines(result),
            *([] if compiled is None else [measure.told("compiled, times as fast", compiled["ratio"], "x")]),
            f"  {'largest difference of the losses':<36} {result['largest difference of the losses']:.1e}",
            measure.told("reached", result["flops per second"], "GFLOP/s", 1e-9, 1),
            measure.told(f"share of a product's {product:,.0f}", result["share of a matrix product"], "%", 100, 0),
            *([] if kernels is None else [f"  {'of it in products and attention':<36} {100 * kernels:.0f} %"]),
        ],
    )
