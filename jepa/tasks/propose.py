"""The verb ``jepa propose``: fit a guess of plans on recorded episodes, for planners to start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from jepa.data.clips import split
from jepa.data.hdf5 import Hdf5Episodes
from jepa.errors import InputError
from jepa.models.proposal import GoalProposal, fit_proposal
from jepa.planning import check_specs
from jepa.schema import Episodes, World
from jepa.tasks.latents import on_device

FRAMES = 256  # that are encoded together


def propose(
    world: World,
    episodes: Path,
    out: Path,
    horizon: int = 8,
    reach: tuple[int, ...] = (8, 4, 2, 16),
    width: int = 256,
    flat: bool = False,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1e-3,
    parts: tuple[float, float, float] = (0.9, 0.05, 0.05),
    split_seed: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> str:
    """Fit goal-conditioned inverse dynamics on a world's latents of the training episodes; write a .safetensors file.

    jepa plan starts its planner from it: --proposal.class_path jepa.models.proposal.load_proposal.

    Args:
        world: whose latents are read, e.g. class_path jepa.checkpoints.load with init_args path
        episodes: dataset that the world was trained on
        out: file of the proposal, NAME.safetensors
        horizon: model steps that are guessed
        reach: how many model steps a goal may be away; one plan is guessed for each, the first should be the commonest
        width: of the network's hidden layers
        flat: tokens of a latent side by side instead of averaged
        steps: of the optimiser
        batch: windows per step
        lr: learning rate of the first step; falls to zero along a cosine
        parts: train, validation and test parts of the episodes, as they were in training
        split_seed: of that split, as it was in training
        seed: of the network's first weights and of the windows that are drawn
        device: where the world runs, e.g. cuda

    Raises:
        InputError: the episodes are missing, too short, or not those of the world
    """
    if out.suffix != ".safetensors":
        raise InputError(f"out was given {out}; expected a file NAME.safetensors")
    store = Hdf5Episodes(episodes)
    check_specs(world.specs, store.specs)
    world = on_device(world, device).eval() if isinstance(world, torch.nn.Module) else world
    found = list(_read(world, store, split(store, parts, split_seed)[0], device))
    if not found:
        block = world.specs.action.block
        raise InputError(f"no training episode of {episodes} has more than {block} frames, a step; record longer ones")
    latents, actions = zip(*found)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = latents[0].shape[1] if flat else 0
        proposal = GoalProposal(world.specs.action, latents[0].shape[-1], horizon, reach, width, tokens).to(device)
    losses = fit_proposal(proposal, latents, actions, steps, batch, lr, seed=seed)
    proposal.save(out)
    last, chance = losses[-max(1, steps // 20) :], world.specs.action.normalise(torch.cat(actions)).var(0).mean().item()
    return f"{out}: error {sum(last) / len(last) / chance:.3f} of the actions' variance, over {len(latents)} episodes"


def _read(world: World, store: Episodes, numbers: list[int], device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents [T,N,D] of every block-th frame and the blocks of actions between them [T-1,A]."""
    block = world.specs.action.block
    names = ("video", "proprio") if store.specs.observation.proprio_mean else ("video",)
    for number in numbers:
        frames = range(0, store.length(number), block)
        if len(frames) < 2:
            continue
        seen = store.read(number, list(frames), names)
        steps = (len(frames) - 1) * block
        action = store.read(number, list(range(steps)), ("action",)).action
        with torch.inference_mode():
            parts = [
                world.encode(seen.map(lambda held: held[None, some].to(device)))[0]  # noqa: B023
                for some in (slice(start, start + FRAMES) for start in range(0, len(frames), FRAMES))
            ]
        yield torch.cat(parts).float().cpu(), action.reshape(len(frames) - 1, -1)
