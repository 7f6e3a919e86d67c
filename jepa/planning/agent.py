"""Model-predictive control: encode the present, plan, act on the first steps of the plan, plan again."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.clock import Clock
from jepa.planning.costs import Cost
from jepa.planning.imagining import imagined, wants_proprio
from jepa.planning.knots import shift
from jepa.planning.match import check_members
from jepa.schema import Plan, Planner, Proposal, Sample, World

STAGES = ("encode", "rollout", "cost", "search", "host")  # of a decision


def _ready(part: object, device: str) -> Any:
    """Modules are moved to the device and put into evaluation mode."""
    return part.to(device).eval() if isinstance(part, torch.nn.Module) else part


def felt(sample: Sample, rows: Tensor) -> Tensor:
    """Proprioception [b,T,P] of some rows of a sample, which must have it."""
    if sample.proprio is None:
        raise InputError("this world reckons where the robot will be, but was given no proprio; give it with the frame")
    return sample.proprio[rows]


def _widened(plans: Tensor, width: int) -> Tensor:
    """[b,W,H,A] -> [b,width,H,A]: the first plan stands in the new places."""
    return torch.cat([plans, plans[:, :1].expand(-1, width - plans.shape[1], -1, -1)], dim=1)


class MPC:
    """Acts by planning in the latent space of a world model: a Policy over a batch of environments.

    Each environment has its own queue of actions, past and warm start. It is encoded at the first step of a block
    and planned for when its queue is empty; its goal is encoded once, until :meth:`reset` or until the goal changes.
    The world is shown pixels and proprioception, never the privileged state.

    A planner that leaves ``elites [B,W,H,A]`` in the trace of its plan gets them back, shifted, behind the warm start:
    it is then [B,1+W,H,A]. What a ``proposal`` guesses stands behind those; where there is no plan yet, its first guess
    is the warm start. ``seconds`` lists, for every call that planned, how long its stages took:
    ``encode`` (present and goal), ``rollout`` and ``cost`` (of the candidates), ``search`` (the planner's own work, its
    gradients included, and proposals), ``host`` (all else) and ``total``, their sum.

    Args:
        world: forecasts latents; its specs say what an action is; a module is moved to the device and put into
            evaluation mode
        planner: searches for the cheapest plan
        cost: what makes an imagined future good
        horizon: H, model steps that a plan looks ahead
        execute: model steps of a plan that are executed before the next plan
        history: frames of context in model steps; by default those that the world was trained to start from
        chunk: candidates per environment in one rollout, to bound the memory; all by default
        device: where the world is
        seed: of the planner's noise; it starts anew when all environments are reset
        proposal: guesses plans from the latents of the present and of the goal, for the planner to start from
    """

    def __init__(
        self,
        world: World,
        planner: Planner,
        cost: Cost,
        horizon: int,
        execute: int = 1,
        history: int | None = None,
        chunk: int | None = None,
        device: str = "cpu",
        seed: int = 0,
        proposal: Proposal | None = None,
    ) -> None:
        self.world, self.proposal = _ready(world, device), _ready(proposal, device)
        self.planner, self.cost = planner, cost.to(device)
        self.horizon, self.execute, self.chunk = horizon, execute, chunk
        self.history = world.specs.evaluation.history if history is None else history
        if not 1 <= execute <= horizon or self.history < 1 or (chunk is not None and chunk < 1):
            raise InputError(
                f"MPC wants 1 <= execute <= horizon, history >= 1 and chunk >= 1, was given execute={execute}, "
                f"horizon={horizon}, history={self.history}, chunk={chunk}"
            )
        check_members(world, cost)
        self.space, self.device, self.seed = world.specs.action, device, seed
        self.seconds: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "total")}
        self._generator = torch.Generator(device)
        self._zero = replace(self.space, block=1).clip(torch.zeros(self.space.env_width))
        self._allocate(0)

    def _allocate(self, count: int) -> None:
        """Bookkeeping of ``count`` environments. What is counted is on the host, so that no decision waits for it."""
        self._queue = torch.zeros(count, self.execute * self.space.block, self.space.env_width)
        self._taken = torch.full((count,), self._queue.shape[1])  # actions of the queue that were executed
        self._frames = torch.zeros(count, dtype=torch.long)  # valid frames of the past
        self._fresh = torch.ones(count, dtype=torch.bool)  # no plan and no goal yet
        self._goal: Tensor | None = None  # uint8 [B,C,H,W]
        self._goal_z: Tensor | None = None  # [B,1,N,D]
        self._z: Tensor | None = None  # [B,history,N,D], the newest last
        self._past = torch.zeros(count, self.history - 1, self.space.width, device=self.device)
        self._proprio: Tensor | None = None  # [B,history,P] raw, for a world whose rollouts want it
        self._warm: Tensor | None = None  # [B,W,H,A]
        self._generator.manual_seed(self.seed)

    def reset(self, done: Tensor) -> None:
        """Forget the past of the environments where ``done [B]`` is true."""
        done = done.cpu()
        if len(done) != len(self._fresh) or done.all():
            self._allocate(len(done))
        self._forget(done)

    def _forget(self, rows: Tensor) -> None:
        self._taken[rows] = self._queue.shape[1]
        self._frames[rows] = 0
        self._fresh[rows] = True

    def act(self, sample: Sample, active: Tensor | None = None) -> Tensor:
        """The present (T=1, with its goal) -> raw environment actions [B,a].

        Where ``active [B]`` is false nothing is encoded or planned, and the action is zero, as ``ActionSpec.clip`` has
        it.
        """
        video, goal = self._pixels(sample)
        if len(video) != len(self._fresh):
            self._allocate(len(video))
        active = torch.ones(len(video), dtype=torch.bool) if active is None else active.cpu()
        if self._goal is not None:
            self._forget(active & ~self._fresh & (goal != self._goal).flatten(1).any(1))
        empty = active & (self._taken == self._queue.shape[1])
        border = active & (self._taken % self.space.block == 0) & (self.history > 1)
        self._decide(sample, goal, (empty | border).nonzero()[:, 0], empty.nonzero()[:, 0])
        rows = active.nonzero()[:, 0]
        action = self._zero.repeat(len(video), 1)
        action[rows] = self._queue[rows, self._taken[rows]]
        self._taken[rows] += 1
        return action

    def follow(self, action: Tensor) -> None:
        """Tell what was really executed [B,a] at the last step, where that is not what :meth:`act` answered.

        The plan goes on as it was; the next one begins from this past.
        """
        rows = (~self._fresh).nonzero()[:, 0]
        self._queue[rows, self._taken[rows] - 1] = action[rows].cpu().float()

    def plan(self, context: Sample) -> Plan:
        """One plan for each of B recorded pasts, from a cold start: actions [B,H,A] and their costs.

        Nothing is remembered of it, and the noise starts anew: the same contexts get the same plans.

        Args:
            context: video [B,T,C,H,W], the present last, T at most ``history``; the raw model actions between them
                [B,T-1,A]; proprio [B,T,P], for a world that reads it; goal, of one frame
        """
        start, clock = time.perf_counter(), Clock(self.device)
        steps = 1 if context.video is None else context.video.shape[1]
        if steps > self.history:
            raise InputError(f"a context of {steps} frames: expected at most {self.history}, the history")
        present, _ = self._pixels(context, steps)
        every = torch.arange(len(present))
        self._generator.manual_seed(self.seed)
        with torch.inference_mode(), clock.stage("encode"):
            z, goal = self._encode(context, every), self._encode(context.goal, every)
        z, goal = z.clone(), goal.clone()  # autograd may save them, for planners that follow the gradient
        past = context.action.to(self.device) if steps > 1 else None
        proprio = felt(context, every).to(self.device) if wants_proprio(self.world) else None
        with torch.inference_mode():
            plan = self._search(z, goal, past, proprio, None, clock)
        plan = replace(plan, action=plan.action.cpu().clone(), cost=plan.cost.cpu().clone())
        self._note(time.perf_counter() - start, clock)
        return plan

    def _pixels(self, sample: Sample, steps: int = 1) -> tuple[Tensor, Tensor]:
        """The present and the goal as [B,C,H,W] on the host; ``steps``: frames that the video must have."""
        if sample.video is None or sample.goal is None or sample.goal.video is None:
            raise InputError("planning needs the present frame and a goal frame, but the sample lacks one; use a task")
        spec = self.world.specs.observation
        for name, video, count in (("frame", sample.video, steps), ("goal frame", sample.goal.video, 1)):
            wanted = (count, spec.channels, spec.height, spec.width)
            if tuple(video.shape[1:]) != wanted:
                raise InputError(
                    f"the {name} is {tuple(video.shape)}, but the world was trained on [B,T,C,H,W] with "
                    f"(T,C,H,W)={wanted}; make the environment with that image size"
                )
        return sample.video[:, -1].cpu(), sample.goal.video[:, 0].cpu()

    @torch.inference_mode()
    def _decide(self, sample: Sample, goal: Tensor, seen: Tensor, due: Tensor) -> None:
        """Encode the environments ``seen`` and plan for those that are ``due``: both host indices."""
        start, clock = time.perf_counter(), Clock(self.device)
        with clock.stage("encode"):
            if len(seen):
                self._observe(sample, seen)
            if len(due):
                self._aim(sample, goal, due[self._fresh[due]])
        if not len(due):
            return
        warm = ~self._fresh[due]
        # A batch needs one length of context and one kind of start; environments that began together share both.
        for key in torch.stack([self._frames[due], warm.long()]).unique(dim=1).T:
            self._plan(due[(self._frames[due] == key[0]) & (warm == key[1])], bool(key[1]), clock)
        self._fresh[due] = False
        self._taken[due] = 0
        self._note(time.perf_counter() - start, clock)

    def _note(self, total: float, clock: Clock) -> None:
        """List the stages of a decision; the device was waited for when its plan was fetched."""
        encode, rollout, cost, plan = (clock.seconds(stage) for stage in ("encode", "rollout", "cost", "plan"))
        search = max(0.0, plan - rollout - cost)
        host = max(0.0, total - encode - rollout - cost - search)
        for stage, value in zip((*STAGES, "total"), (encode, rollout, cost, search, host, total)):
            self.seconds[stage].append(value)

    def _encode(self, sample: Sample, rows: Tensor) -> Tensor:
        """z [b,1,N,D] of pixels and proprioception only: nothing else of the sample is touched."""
        proprio = None if sample.proprio is None else sample.proprio[rows].to(self.device)
        return self.world.encode(Sample(video=sample.video[rows].to(self.device), proprio=proprio))

    def _observe(self, sample: Sample, rows: Tensor) -> None:
        """Append the present latent and the block that led to it to the past of ``rows``."""
        z = self._encode(sample, rows)
        if self._z is None:
            self._z = z.new_zeros(len(self._fresh), self.history, *z.shape[2:])
        self._z[rows] = torch.cat([self._z[rows, 1:], z], dim=1)
        if wants_proprio(self.world):
            pose = felt(sample, rows).to(self.device)
            if self._proprio is None:
                self._proprio = pose.new_zeros(len(self._fresh), self.history, pose.shape[-1])
            self._proprio[rows] = torch.cat([self._proprio[rows, 1:], pose], dim=1)
        if self.history > 1:
            last = self._taken[rows, None] + torch.arange(-self.space.block, 0)
            block = self._queue[rows[:, None], last].flatten(1).unsqueeze(1).to(self.device)
            self._past[rows] = torch.cat([self._past[rows, 1:], block], dim=1)
        self._frames[rows] = (self._frames[rows] + 1).clamp_max(self.history)

    def _aim(self, sample: Sample, goal: Tensor, rows: Tensor) -> None:
        """Encode the goals of ``rows``."""
        if not len(rows):
            return
        z = self._encode(sample.goal, rows)
        if self._goal_z is None:
            self._goal_z, self._goal = z.new_zeros(len(self._fresh), *z.shape[1:]), torch.empty_like(goal)
        self._goal_z[rows], self._goal[rows] = z, goal[rows]

    def _plan(self, rows: Tensor, warm: bool, clock: Clock) -> None:
        """One plan for each of ``rows``, which have the same number of frames in their past."""
        frames = int(self._frames[rows[0]])
        with torch.inference_mode(False):  # copies that autograd may save, for planners that follow the gradient
            z, goal = self._z[rows, -frames:], self._goal_z[rows]
            past = self._past[rows, self.history - frames :] if frames > 1 else None
            proprio = None if self._proprio is None else self._proprio[rows, -frames:]
        self._keep(self._search(z, goal, past, proprio, self._warm[rows] if warm else None, clock), rows)

    def _search(
        self, z: Tensor, goal: Tensor, past: Tensor | None, proprio: Tensor | None, warm: Tensor | None, clock: Clock
    ) -> Plan:
        """Context [b,T,N,D], goals [b,1,N,D], past [b,T-1,A], proprio [b,T,P] and what is left of earlier plans
        [b,W,H,A] -> plans."""
        about = (self.horizon, self.chunk, self.device, self._generator, proprio)
        problem = imagined(self.world, self.cost, z, goal, past, *about, clock=clock)
        with clock.stage("plan"):
            return self.planner.plan(problem, self._start(z, goal, warm))

    def _start(self, z: Tensor, goal: Tensor, warm: Tensor | None) -> Tensor | None:
        """Raw plans [b,H,A] or [b,W,H,A] that the planner starts from: the last one, its elites, what is proposed."""
        starts = [] if warm is None else [warm]
        if self.proposal is not None:
            starts.append(self.proposal.propose(z[:, -1], goal[:, 0], self.horizon))
        if not starts:
            return None
        start = torch.cat(starts, dim=1)
        return start[:, 0] if start.shape[1] == 1 else start

    def _keep(self, plan: Plan, rows: Tensor) -> None:
        """Queue the first steps of the plan and shift the rest to where the next decision begins."""
        action = plan.action[:, : self.execute].cpu()  # the one wait for the device of this decision
        assert plan.cost.isfinite().all(), f"no candidate of the planner has a finite cost: {plan.cost.tolist()}"
        self._queue[rows] = action.reshape(len(rows), -1, self.space.env_width)
        plans = plan.action.unsqueeze(1)
        if "elites" in plan.trace:
            plans = torch.cat([plans, plan.trace["elites"]], dim=1)
        if self._warm is None:
            self._warm = plans.new_zeros(len(self._fresh), *plans.shape[1:])
        width = max(plans.shape[1], self._warm.shape[1])  # a search that was cut short has no elites
        self._warm, plans = _widened(self._warm, width), _widened(plans, width)
        self._warm[rows] = shift(plans, self.execute)
