"""What probing costs: a sweep of attentive heads over cached tokens, one encoding, and plain heads that re-encode."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError, check_choice
from jepa.models.attentive import AttentiveClassifier
from jepa.models.video import VideoViT
from jepa.tasks.features import AVERAGED, Pool, pool_tokens
from jepa.tasks.shards import Shards
from probes.attentive import AttentiveProbe
from probes.cache import Examples, hold_out
from probes.heads import Heads, Setting
from probes.training import HELD_OUT, sweep
from tools.benchmarks import measure
from tools.benchmarks.step import SIZES

LR, DECAY = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)  # the grid of V-JEPA 2: twenty heads
CLASSES = 174  # of Something-Something v2
LIMIT = 1e-5  # of the difference between a head of the sweep and the plain one, in float32


class Plain(nn.Module):
    """The probe of depth 1 as it is described: keys and values of every token, and attention of one query to them.

    Args:
        head: whose weights it takes.
    """

    def __init__(self, head: AttentiveClassifier) -> None:
        super().__init__()
        self.head = copy.deepcopy(head)

    def forward(self, x: Tensor) -> Tensor:
        pooler, block = self.head.pooler, self.head.pooler.cross_attention_block
        query = pooler.query_tokens.expand(len(x), -1, -1)
        key, value = block.xattn.kv(block.norm1(x)).chunk(2, dim=-1)
        parts = [y.unflatten(2, (block.xattn.heads, -1)).transpose(1, 2) for y in (block.xattn.q(query), key, value)]
        query = query + F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        query = query + block.mlp(block.norm2(query))
        return self.head.linear(query[:, 0])


@dataclass(frozen=True)
class Work:
    """What is encoded and probed."""

    clips: int  # in the cache
    encoded: int  # of them, in one measurement of what is not done in full
    batch: int
    epochs: int
    heads: int
    halving: int | None = None

    @property
    def trained(self) -> int:
        """Clips that a sweep trains on; the others choose the head."""
        return self.clips - round(HELD_OUT * self.clips)

    def cache(self, z: Tensor, file: Path) -> Examples:
        """The latents ``[encoded,T,N,D]``, again and again, as a cache of all clips on the disk, in float16."""
        rows = np.resize(z.half().flatten(1, 2).numpy(), (self.clips, z.shape[1] * z.shape[2], z.shape[3]))
        np.save(file, rows)
        number = np.arange(self.clips)
        y = torch.from_numpy(number % CLASSES)
        return Examples(Shards([file]), number[:, None], z.shape[1], y, number, ("class",))

    def probe(self) -> AttentiveProbe:
        torch.manual_seed(0)
        return AttentiveProbe(depth=1, heads=self.heads, classes=CLASSES)

    def swept(self, examples: Examples) -> Callable[[int], object]:
        given = (self.epochs, self.batch, LR, DECAY)
        return lambda seed: sweep(self.probe(), examples, *given, seed=seed, halving=self.halving)


def plain_heads(work: Work, z: Tensor) -> tuple[list[Plain], list[torch.optim.Optimizer]]:
    """Twenty plain heads with an optimiser each."""
    probe = work.probe()
    probe.build(z, torch.zeros(1, dtype=torch.int64))
    heads = [Plain(probe.head) for _ in range(len(LR) * len(DECAY))]
    settings = [{"lr": rate, "weight_decay": decay} for rate in LR for decay in DECAY]
    return heads, [torch.optim.AdamW(head.parameters(), **given) for head, given in zip(heads, settings)]


def difference(work: Work, z: Tensor) -> float:
    """The largest between a head of a sweep and the plain module with its weights: predictions, and all gradients."""
    probe, y = work.probe(), torch.arange(len(z)) % CLASSES
    probe.build(z, y)
    heads = Heads(probe, [Setting(rate, decay) for rate in LR for decay in DECAY])
    generator = torch.Generator().manual_seed(0)
    for value in heads.weights.values():  # other weights in every head
        value.add_(0.02 * torch.randn(value.shape, generator=generator))
    heads.backward(z, y, 1.0)
    mine = probe.together(heads.weights, z).detach()
    worst = 0.0
    for number in (0, len(heads) - 1):
        plain = Plain(heads.head(number).head)
        theirs = plain(z.flatten(1, 2))
        F.cross_entropy(theirs, y).backward()
        worst = max(worst, _largest(theirs.detach() - mine[number]))
        for name, value in plain.named_parameters():
            worst = max(worst, _largest(value.grad - heads.gradients[name][number]))
    assert worst < LIMIT, f"a head of the sweep differs from the plain one by {worst}"
    return worst


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def compare(work: Work, encoder: VideoViT, pools: list[Pool], repeats: int, folder: Path) -> dict[str, Any]:
    """Measure encoding, sweeps over what each pooling leaves, and what plain heads do beside encoding."""
    shape = (work.encoded, encoder.frames, 3, *encoder.frame)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def encode(number: int) -> Tensor:
        return torch.cat([encoder(clip) for clip in video.split(1)])

    z = encode(0)
    heads, optimisers = plain_heads(work, z)
    y, tokens = torch.arange(work.encoded) % CLASSES, z.flatten(1, 2)

    def train(number: int) -> None:
        for head in heads:
            F.cross_entropy(head(tokens), y).backward()

    def update(number: int) -> None:
        for optimiser in optimisers:
            optimiser.step()

    ways = {"encode": encode, "train": train, "update": update}
    for pool in pools:
        examples = work.cache(pool_tokens(z, pool, grid=encoder.grid), folder / f"{pool}.npy")
        ways[f"sweep, {pool}"] = work.swept(examples)
    assert len(hold_out(examples, HELD_OUT, 0)[0]) == work.trained
    times = measure.interleaved(ways, repeats)
    wall, cpu = ({name: getattr(time, kind) for name, time in times.items()} for kind in ("wall", "cpu"))
    return {
        "tokens": tokens.shape[1],
        "largest difference of a head from the plain one": difference(work, z),
        "seconds measured": {name: measure.summary(time) for name, time in wall.items()},
        "sweeps": {pool: _found(work, wall, f"sweep, {pool}") for pool in pools},
        "sweeps by CPU time": {pool: _found(work, cpu, f"sweep, {pool}") for pool in pools},
    }


def _found(work: Work, times: dict[str, np.ndarray], way: str) -> dict[str, Any]:
    """A sweep beside encoding once, and beside plain heads, multiplied out from the parts that were measured.

    The plain way is a kind one: its heads share one encoding per epoch, and the cost of updates is that of whole
    batches.
    """
    once, swept = times["encode"] * work.clips / work.encoded, times[way]
    epoch = (times["encode"] + times["train"]) * work.trained / work.encoded
    plain = work.epochs * (epoch + times["update"] * -(-work.trained // work.batch))
    return {
        "sweep over encoding once": measure.summary(swept / once),
        "one epoch of it over encoding once": measure.summary(swept / work.epochs / once),
        "plain over sweep": measure.summary(plain / swept),
        "plain over encoding once and sweep": measure.summary(plain / (once + swept)),
        "seconds": {
            "sweep, measured": measure.summary(swept),
            "encoding once, multiplied out": measure.summary(once),
            "plain heads, multiplied out": measure.summary(plain),
        },
    }


def probes(
    model: str = "vit_s",
    clips: int = 256,
    encoded: int = 4,
    size: int = 224,
    frames: int = 16,
    batch: int = 256,
    epochs: int = 20,
    heads: int = 6,
    halving: int | None = None,
    pools: list[str] = ["none", "grid"],
    threads: int = 1,
    repeats: int = 5,
    out: Path | None = None,
) -> str:
    """Compare the cost of a 20-head sweep over cached tokens with that of encoding, and of plain heads that re-encode.

    The heads are attentive probes of depth 1, for five learning rates and four weight decays. The sweep is run in full:
    it reads a cache on the disk, trains for all epochs, and chooses a head on held-out clips. Encoding (float32, no
    gradient) and the plain heads are measured on a few clips and multiplied out to as many as the sweep has; the plain
    heads are encoded for once in every epoch, all together.

    Args:
        model: tiny, vit_s, vit_b, vit_l
        clips: in the cache
        encoded: clips of a measurement of what is multiplied out
        size: height and width of a frame in pixels
        frames: of a clip
        batch: clips of a training step
        epochs: of the sweep
        heads: attention heads of a probe; those of the encoder, as V-JEPA has it
        halving: factor by which the sweep's heads become fewer, in steps (the plain ones stay twenty); null keeps all
        pools: how the tokens are averaged before they are cached: none, grid (2x2 neighbours), time, grid_time, ...
        threads: of torch
        repeats: measurements
        out: a JSON file to write
    """
    check_choice("model", model, SIZES)
    for pool in pools:
        check_choice("pools", pool, AVERAGED)
    if min(encoded, batch, epochs, threads) < 1 or clips < 10 or repeats < 2 or not pools:
        raise InputError(
            f"clips={clips}, encoded={encoded}, batch={batch}, epochs={epochs}, threads={threads}, repeats={repeats}, "
            f"pools={pools}: expected 10 clips, 2 repetitions and 1 of the others, or more"
        )
    (dim, depth, encoder_heads), _ = SIZES[model]
    work = Work(clips, min(encoded, clips), batch, epochs, heads, halving)
    with measure.threads(threads), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        encoder = VideoViT(size, frames, dim=dim, depth=depth, heads=encoder_heads, norm=True)
        result = compare(work, encoder, pools, repeats, Path(folder))
        about = measure.about()
    measure.write(out, {"benchmark": "probes", "model": model, "work": vars(work), "result": result, "about": about})
    return _told(model, work, result)


def _told(model: str, work: Work, result: dict[str, Any]) -> str:
    lines = []
    for pool, found in result["sweeps"].items():
        seconds, cpu = found["seconds"], result["sweeps by CPU time"][pool]
        lines += [
            f"  tokens cached with pool {pool}:",
            measure.told("sweep, measured", seconds["sweep, measured"], "s"),
            measure.told("encoding once, multiplied out", seconds["encoding once, multiplied out"], "s"),
            measure.told("plain heads, multiplied out", seconds["plain heads, multiplied out"], "s"),
            measure.told("an epoch of it over encoding once", found["one epoch of it over encoding once"], "%", 100),
            measure.told("sweep over encoding once", found["sweep over encoding once"], "%", 100),
            measure.told("sweep over encoding, by CPU time", cpu["sweep over encoding once"], "%", 100),
            measure.told("plain over sweep", found["plain over sweep"], "x", 1, 1),
            measure.told("plain over encoding once and sweep", found["plain over encoding once and sweep"], "x", 1, 1),
        ]
    worst = result["largest difference of a head from the plain one"]
    lines.append(f"  {'largest difference from a plain head':<36} {worst:.1e}")
    fewer = "" if work.halving is None else f", the best 1/{work.halving} of them at a time"
    clips = f"{work.clips} clips of {result['tokens']} tokens of {model}"
    title = f"20 heads of depth 1{fewer}, {work.epochs} epochs, {clips}"
    return measure.table(title, lines)
