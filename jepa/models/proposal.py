"""A learned guess of plans: goal-conditioned inverse dynamics on latents, for any planner to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.parts import load_part, save_part
from jepa.schema import ActionSpec


class GoalProposal(nn.Module):
    """Inverse dynamics f(z_t, z_t+k, k) -> a_t ... a_t+H-1: which actions led from here to there in k steps.

    At planning time k is not known: one plan is guessed for each of ``reach``, and a planner compares them. Tokens of
    a latent are averaged, or kept side by side. A jepa.schema.Proposal.

    Args:
        space: the actions, with their statistics and block.
        dim: D, of the latents.
        horizon: H, model steps that are guessed.
        reach: the numbers of model steps k that a goal may be away; the first should be the commonest.
        width: of the two hidden layers.
        tokens: N where tokens stand side by side; 0 averages them.
    """

    def __init__(
        self,
        space: ActionSpec,
        dim: int,
        horizon: int = 8,
        reach: Sequence[int] = (8, 4, 2, 16),
        width: int = 256,
        tokens: int = 0,
    ) -> None:
        super().__init__()
        reach = tuple(reach)
        if min(dim, horizon, width, *reach, 1) < 1 or not reach or len(set(reach)) < len(reach) or tokens < 0:
            raise InputError(
                f"GoalProposal wants dim, horizon, width and distinct reach of at least 1, was given dim={dim}, "
                f"horizon={horizon}, width={width}, reach={reach}, tokens={tokens}"
            )
        self.space, self.dim, self.horizon, self.reach, self.tokens = space, dim, horizon, reach, tokens
        self.options = {"dim": dim, "horizon": horizon, "reach": list(reach), "width": width, "tokens": tokens}
        inputs = dim * max(tokens, 1)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.far = nn.Embedding(len(reach), width)
        self.first = nn.Linear(2 * inputs, width)
        self.body = nn.Sequential(nn.GELU(), nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.last = nn.Linear(width, horizon * space.width)

    def _read(self, z: Tensor) -> Tensor:
        """z [n,N,D] -> [n,inputs], standardised."""
        if z.shape[-1] != self.dim or (self.tokens and z.shape[-2] != self.tokens):
            raise InputError(
                f"the proposal was fitted to latents of dim={self.dim} and tokens={self.tokens or 'any'}, but got "
                f"{tuple(z.shape)}; fit one to this world"
            )
        return ((z.flatten(1) if self.tokens else z.mean(1)) - self.mean) / self.std

    def forward(self, z: Tensor, goal: Tensor, far: Tensor) -> Tensor:
        """Present and goal [n,N,D], and which of ``reach`` lies between, int64 [n] -> normalised actions [n,H,A]."""
        x = self.first(torch.cat([self._read(z), self._read(goal)], dim=1)) + self.far(far)
        return self.last(self.body(x)).unflatten(1, (self.horizon, self.space.width))

    @torch.no_grad()
    def propose(self, z: Tensor, goal: Tensor, horizon: int) -> Tensor:
        """Latents of the present and of the goal [B,N,D] -> raw plans [B,W,horizon,A] in bounds, one for each reach.

        Beyond the steps that were learned, plans go on with the mean action. Choices become one-hot.
        """
        count, rows = len(self.reach), len(z)
        far = torch.arange(count, device=z.device).repeat(rows)
        plans = self(z.repeat_interleave(count, 0), goal.repeat_interleave(count, 0), far)[:, :horizon]
        rest = plans.new_zeros(len(plans), horizon - plans.shape[1], plans.shape[2])
        plans = self.space.denormalise(torch.cat([plans, rest], dim=1)).unflatten(0, (rows, count))
        return self.space.clip(plans)

    def save(self, path: Path | str) -> None:
        """Write a .safetensors file for :func:`load_proposal`."""
        save_part(self, path, self.options | {"space": asdict(self.space)})


def load_proposal(path: str) -> GoalProposal:
    """A proposal that was saved, ready for a planner.

    Args:
        path: of its .safetensors file.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    return load_part(path, "GoalProposal", _built)


def _built(options: dict[str, Any]) -> GoalProposal:
    space = {name: tuple(v) if isinstance(v, list) else v for name, v in options.pop("space").items()}
    return GoalProposal(ActionSpec(**space), **options)


def windows(lengths: Sequence[int], horizon: int, reach: Sequence[int]) -> list[tuple[int, int, int]]:
    """Every (episode, first frame, which reach) whose goal and whose actions lie within the episode.

    ``lengths`` counts frames; an episode of n frames has n-1 actions.
    """
    return [
        (episode, start, far)
        for episode, length in enumerate(lengths)
        for far, steps in enumerate(reach)
        for start in range(length - max(steps, horizon))
    ]


def fit_proposal(
    proposal: GoalProposal,
    latents: Sequence[Tensor],
    actions: Sequence[Tensor],
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> list[float]:
    """Hindsight: any later frame of an episode is a goal that its actions reached (Andrychowicz et al. 2017).

    AdamW with a cosine to zero on the squared error of normalised actions. Leaves the proposal in evaluation mode.

    Args:
        proposal: fitted in place, on the device where it is
        latents: of whole episodes, each [T,N,D] in model steps
        actions: raw, each [T-1,A] (blocks of environment actions)
        steps: of the optimiser
        batch: windows per step
        lr: of the first step
        weight_decay: of AdamW
        seed: says which windows are drawn

    Returns:
        the loss of every step, in units of the variance that the space says its actions have

    Raises:
        InputError: episodes that do not fit each other, or that are all too short
    """
    _check_episodes(proposal, latents, actions)
    found = torch.tensor(windows([len(z) for z in latents], proposal.horizon, proposal.reach))
    if not len(found):
        need = max(proposal.horizon, min(proposal.reach)) + 1
        raise InputError(f"no episode has {need} frames, which horizon and reach need; take less of them")
    device, offsets = proposal.mean.device, torch.tensor([0, *(len(z) for z in latents)]).cumsum(0)
    z = torch.cat(list(latents)).to(device)
    pad = [torch.cat([a, a[-1:]]) for a in actions]  # one row per frame; the last is in no window
    action = proposal.space.normalise(torch.cat(pad).float()).to(device)
    reach, draw = torch.tensor(proposal.reach), torch.Generator().manual_seed(seed)
    seen = (z.flatten(1) if proposal.tokens else z.mean(1)).float()
    std = seen.std(0, correction=0)
    proposal.mean.copy_(seen.mean(0)), proposal.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
    optimizer = torch.optim.AdamW(proposal.train().requires_grad_(True).parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        episode, start, far = found[torch.randint(len(found), (batch,), generator=draw)].T
        first = offsets[episode] + start
        wanted = action[(first[:, None] + torch.arange(proposal.horizon)).to(device)]
        guess = proposal(z[first.to(device)], z[(first + reach[far]).to(device)], far.to(device))
        loss = F.mse_loss(guess, wanted)
        optimizer.zero_grad(), loss.backward()
        optimizer.step(), schedule.step()
        losses.append(loss.detach())
    proposal.eval()
    return torch.stack(losses).tolist()


def _check_episodes(proposal: GoalProposal, latents: Sequence[Tensor], actions: Sequence[Tensor]) -> None:
    if len(latents) != len(actions) or not len(latents):
        raise InputError(f"{len(latents)} episodes of latents, {len(actions)} of actions; give one of each")
    for number, (z, action) in enumerate(zip(latents, actions)):
        if z.ndim != 3 or len(action) != len(z) - 1 or action.shape[1:] != (proposal.space.width,):
            raise InputError(
                f"episode {number} has latents {tuple(z.shape)} and actions {tuple(action.shape)}; expected [T,N,D] "
                f"and [T-1,{proposal.space.width}]"
            )
        if not action.isfinite().all():
            raise InputError(f"episode {number} has actions that are no numbers; leave out the row of its last frame")
    proposal._read(latents[0][:1].to(proposal.mean.device))
