"""The verb ``jepa inspect cost``: what a configuration would cost to train, before anything is read or allocated."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from jepa.errors import InputError
from jepa.masks import Grid, Masks
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, Mask, ObservationSpec, Sample, Specs
from jepa.tasks.budget import Clips, Layout, Run, describe
from jepa.tasks.configuration import Configuration
from jepa.tasks.counting import count
from jepa.tasks.masked import MaskedPretrain
from jepa.tasks.pretrain import Pretrain
from jepa.tasks.sharding import Sharded

META = torch.device("meta")
BATCHES, LARGEST = 16, 64  # that are drawn to learn the lengths of masks; clips of one
COMPUTED = {"16": torch.float16, "bf16": torch.bfloat16, "64": torch.float64}  # trainer.precision -> of products


def inspect_cost(
    fit: Configuration,
    accelerators: int | None = None,
    peak: float = 989.0,
    utilisation: float = 0.4,
    memory: float | None = None,
    machine: int = 8,
    action: int = 2,
    proprio: int = 0,
) -> str:
    """Say what a fit of this configuration would cost: parameters, FLOPs, memory and days. No data is opened.

    FLOPs are those of matrix products and convolutions, a multiply-add counts two. Memory is an estimate: what the
    kernels and the caching allocator take beside it is not known here.

    Args:
        fit: the configuration, as for the verb fit; its model is built on the meta device
        accelerators: devices that share the steps, whose clips stay those of the configuration; as many as it is
            for, by default
        peak: TFLOP/s of one of them in the precision of the training; 989 is an H100's in bfloat16
        utilisation: the share of the peak that the training reaches
        memory: GiB of one of them; says what fits
        machine: devices of each machine that the configuration is for, where it leaves trainer.devices to the machine
        action: width of an environment's action, which only the data of a world model would tell
        proprio: width of its proprioception
    """
    _check(accelerators, peak, utilisation, memory, machine)
    task = fit.model(META)
    run = _run(fit, accelerators, machine)
    dtype, weights = _precision(fit)
    task.to(weights)
    if isinstance(task, MaskedPretrain):
        clips = [_masked(task, frames, share, run.at_once, dtype) for frames, share in _frames(fit).items()]
    elif isinstance(task, Pretrain):
        clips = [_windows(task.world, fit, action, proprio, dtype)]
    else:
        raise InputError(
            f"the cost of a {type(task).__name__} is not known; expected a model of class "
            "jepa.tasks.masked.MaskedPretrain or jepa.tasks.pretrain.Pretrain"
        )
    return describe(task.world, clips, run, dtype, peak, utilisation, memory)


def _check(accelerators: int | None, peak: float, utilisation: float, memory: float | None, machine: int) -> None:
    few = (accelerators is not None and accelerators < 1) or machine < 1
    if few or peak <= 0 or (memory is not None and memory <= 0):
        raise InputError(
            f"accelerators={accelerators}, machine={machine}, peak={peak}, memory={memory}: expected at least one "
            "accelerator, one device of a machine, and TFLOP/s and GiB above zero"
        )
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation={utilisation}: expected a share of the peak, above 0 up to 1, such as 0.4")


def _run(fit: Configuration, accelerators: int | None, machine: int) -> Run:
    """The batch is that of the devices which the configuration is for; the accelerators share it."""
    trainer, data = fit.trainer, fit.data
    if not isinstance(at_once := data.get("batch_size"), int):
        raise InputError(f"{fit.data_class} has no batch_size; expected jepa.data's VideoData or EpisodeData")
    devices, machines = _devices(trainer.get("devices")) or machine, trainer.get("num_nodes") or 1
    batch = at_once * (trainer.get("accumulate_grad_batches") or 1) * devices * machines
    ranks = accelerators or devices * machines
    if ranks > batch:
        raise InputError(
            f"accelerators={ranks}, but a step has {batch:,} clips; expected at most one accelerator for each, give "
            "fewer, or a larger data.batch_size"
        )
    steps = trainer.get("max_steps", -1)
    if steps < 1:
        epoch = data.get("clips_per_epoch") or data.get("windows_per_epoch")
        if not epoch or (trainer.get("max_epochs") or -1) < 1:
            raise InputError(
                "the configuration does not say how many steps it takes; give trainer.max_steps, or trainer.max_epochs "
                "with the clips or windows of an epoch in data"
            )
        steps = trainer["max_epochs"] * max(1, epoch // batch)
    passes = _passes(batch, ranks, at_once)
    recipe = f"configured for {machines} x {devices} devices" if machines * devices > 1 else "configured for one device"
    layout = _layout(trainer.get("strategy"), ranks, devices)
    return Run(steps, batch, recipe, ranks, passes, math.ceil(batch / ranks / passes), layout)


def _passes(batch: int, ranks: int, most: int) -> int:
    """The fewest in which a rank takes its clips of a step, at most so many at once, equally many where it can be."""
    passes = math.ceil(batch / ranks / most)
    if batch % ranks:
        return passes
    return next(number for number in range(passes, batch + 1) if batch // ranks % number == 0)


def _layout(strategy: Any, ranks: int, devices: int) -> Layout:
    """What the strategy makes of the ranks, on equal machines of at most so many devices.

    Where it is another than Sharded, what Sharded would do is told beside it.
    """
    given = strategy if isinstance(strategy, dict) else {}
    name, options = given.get("class_path", strategy or "auto"), given.get("init_args") or {}
    machine = max(number for number in range(1, devices + 1) if ranks % number == 0)
    if name == _path(Sharded):
        shards = options.get("shards") or machine
        if shards < 1 or ranks % shards:
            raise InputError(f"shards={shards} of {ranks} accelerators: expected a divisor, give one")
        return Layout(shards, True, False, f"FSDP2 over {shards}, {shards} x {ranks // shards} accelerators")
    plain = name == "auto" or name.startswith("ddp") or name.endswith(DDPStrategy.__name__)
    alone = name == "auto" and ranks == 1
    told = "one device" if alone else "DDP" if plain else f"the strategy {name}, which is in no column"
    return Layout(machine, False, plain and not alone and not options.get("gradient_as_bucket_view"), told)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _devices(given: Any) -> int | None:
    """Of ``trainer.devices``; None where it is left to the machine."""
    if isinstance(given, (list, tuple)):
        return len(given)
    if isinstance(given, str) and "," in given:
        return len([number for number in given.split(",") if number.strip()])
    return int(given) if str(given).isdigit() and int(given) else None


def _precision(fit: Configuration) -> tuple[torch.dtype, torch.dtype]:
    """Types of the matrix products and of the weights."""
    given = str(fit.trainer.get("precision") or "32-true")
    dtype = COMPUTED.get(given.split("-")[0], torch.float32)
    return dtype, dtype if given.endswith("-true") else torch.float32


def _frames(fit: Configuration) -> dict[int, float]:
    """Number of frames -> share of the clips."""
    sources = fit.data.get("sources")
    if not sources:
        raise InputError(f"{fit.data_class} has no sources; expected jepa.data.video_module.VideoData with some")
    total = sum(source["weight"] for source in sources)
    shares: dict[int, float] = {}
    for source in sources:
        shares[source["frames"]] = shares.get(source["frames"], 0.0) + source["weight"] / total
    return dict(sorted(shares.items()))


def _masked(task: MaskedPretrain, frames: int, share: float, batch: int, dtype: torch.dtype) -> Clips:
    """Clips of a masked model, under masks of their mean lengths."""
    encoder = task.world.encoder
    grid = (max(1, frames // encoder.tubelet), *encoder.grid)
    height, width = (side * encoder.patch for side in encoder.grid)
    masks = task.image_masks if frames == 1 and task.image_masks else task.masks
    shapes = _lengths(masks, grid, max(1, round(batch * share)))
    video = torch.empty(1, frames, 3, height, width, dtype=torch.uint8, device=META)
    step = count(task.world, lambda: task.world(video, [_mask(*shape) for shape in shapes]), dtype)
    parts = [f"{kept} context and {f'{many} x ' * (many > 1)}{length} target" for kept, many, length in shapes]
    tokens = grid[0] * grid[1] * grid[2]
    seen = f"{frames} frames of {height} x {width}, {share:.0%} of the clips: {tokens} tokens; {'; '.join(parts)}"
    return Clips(share, seen, step)


def _lengths(masks: Masks, grid: Grid, batch: int) -> list[tuple[int, int, int]]:
    """Of each generator, the tokens of the context, the targets of a clip, the tokens of each: means over batches."""
    clips = min(batch, LARGEST)
    drawn = [masks(ids, grid) for ids in torch.arange(BATCHES * clips).split(clips)]
    found = []
    for generator, mine in zip(masks.generators, zip(*drawn)):
        context, target = (sum(getattr(mask, name).numel() for mask in mine) for name in ("context", "target"))
        rows = BATCHES * clips
        found.append((round(context / rows), generator.targets, round(target / (rows * generator.targets))))
    return found


def _mask(context: int, targets: int, length: int) -> Mask:
    def tokens(*shape: int) -> Tensor:
        return torch.empty(1, *shape, dtype=torch.int64, device=META)

    return Mask(tokens(context), tokens(targets, length))


def _windows(world: WorldModel, fit: Configuration, action: int, proprio: int, dtype: torch.dtype) -> Clips:
    """Windows of episodes, of which only the data knows the widths."""
    frames, skip = fit.data.get("frames"), fit.data.get("frame_skip", 1)
    if not isinstance(frames, int):
        raise InputError(f"{fit.data_class} has no frames; expected jepa.data.module.EpisodeData")
    ones, zeros = (1.0,), (0.0,)
    size = world.encoder.size
    height, width = (size, size) if isinstance(size, int) else size
    seen = ObservationSpec(height, width, proprio_mean=zeros * proprio, proprio_std=ones * proprio)
    # tables and statistics that are made now belong where the model is
    with META:
        world.bind(Specs(ActionSpec((-1.0,) * action, ones * action, zeros * action, ones * action, skip), seen))
        sample = Sample(
            video=torch.empty(1, frames, 3, height, width, dtype=torch.uint8),
            action=torch.empty(1, frames - 1, action * skip),
            proprio=torch.empty(1, frames, proprio) if proprio else None,
        )
    step = count(world, lambda: [world(sample)], dtype)
    told = f"windows of {frames} frames of {height} x {width}; actions {action} wide, in blocks of {skip}"
    return Clips(1.0, told + (f"; proprioception {proprio} wide" if proprio else ""), step)
