"""Tree search as a planner, and as a search in the latents of a world with rewards towards a goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_choice
from jepa.planning.choices import Choices, check_menu, menu_of
from jepa.planning.costs import GoalLatent
from jepa.planning.readings import read
from jepa.planning.sampling import better, winner
from jepa.planning.tree import PUCT, Expansion, Gumbel, Rule, search
from jepa.schema import Plan, Problem, World


@dataclass
class _Seen:
    """The best plan of every environment so far, and the worst finite cost."""

    plan: Tensor  # [B,K]
    cost: Tensor  # [B]
    worst: Tensor  # [B]

    def update(self, plans: Tensor, cost: Tensor) -> Tensor:
        """Candidates [B,C,K] and their costs [B,C] -> the value [B] of the best; the infinite count as the worst."""
        best, least = winner(plans, cost)
        self.plan, self.cost = better(self.plan, self.cost, best, least)
        finite = torch.where(cost.isfinite(), cost, -torch.inf).amax(1)
        self.worst = torch.maximum(self.worst, finite)
        known = torch.where(self.worst.isfinite(), self.worst, torch.zeros_like(self.worst))
        return -torch.where(least.isfinite(), least, known)


class TreeSearch:
    """Monte Carlo tree search over plans of choices, whose outcome is the cost of the whole plan.

    A node is the beginning of a plan. Its value is minus the cost of the cheapest of several ways to complete it: as
    the best plan that was seen goes on, and at random. That needs no reward of single steps, so any cost will do, and
    no state that could be kept, so any world will do. The best plan that was seen is returned. For learned rewards,
    values and priors see :func:`jepa.planning.tree.search`.

    Args:
        simulations: nodes that are added with a warm start
        first_simulations: without one, at the first decision of an episode
        rule: ``gumbel`` as in Gumbel MuZero, which improves after few simulations, or ``puct`` as in MuZero
        completions: ways to complete a plan, at every node
        trust: logit by which the choices of a warm start are likelier than others, in the prior
        considered: choices that compete at the root, for ``gumbel``
        hold: environment steps for which a choice is held
        levels: values per dimension of the grid over a continuous action space
    """

    def __init__(
        self,
        simulations: int = 48,
        first_simulations: int = 96,
        rule: Literal["gumbel", "puct"] = "gumbel",
        completions: int = 8,
        trust: float = 2.0,
        considered: int = 16,
        hold: int = 1,
        levels: int = 3,
    ) -> None:
        self.simulations, self.first_simulations, self.rule = simulations, first_simulations, rule
        self.completions, self.trust, self.considered = completions, trust, considered
        self.hold, self.levels = hold, levels
        check_choice("TreeSearch.rule", rule, ("puct", "gumbel"))
        check_menu("TreeSearch", hold, levels)
        if min(simulations, first_simulations, completions, considered) < 1 or trust < 0:
            raise InputError(
                f"TreeSearch wants simulations, completions and considered >= 1 and trust >= 0, was given "
                f"simulations={simulations} and {first_simulations}, completions={completions}, "
                f"considered={considered}, trust={trust}"
            )

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """Search. The trace holds the ``best`` cost after every simulation [I+1,B] and the root's ``policy`` [B,n].

        Args:
            problem: what to minimise, and where
            warm: raw plans [B,H,A], or [B,W,H,A] whose first guides the prior; all are tried
        """
        space = Choices(problem, self.hold, self.levels)
        start = space.begin(warm)
        prior = self._prior(space, start)
        none = torch.full((problem.batch,), torch.inf, device=problem.device)
        plans = self._random(space).expand(problem.batch, -1, -1)
        plans = plans if start is None else torch.cat([start, plans], dim=1)
        seen = _Seen(plans[:, 0], none, -none)
        root = Expansion((plans[:, 0] * 0, plans[:, 0, 0] * 0), prior[:, 0], seen.update(plans, space.cost(plans)))
        trace = [seen.cost]

        def step(state: tuple[Tensor, ...], action: Tensor) -> Expansion:
            begun, depth = state
            time = torch.arange(space.count, device=action.device)
            begun = torch.where(time == depth[:, None], action[:, None], begun)
            rest = torch.cat([seen.plan.unsqueeze(1), self._random(space).expand(len(action), -1, -1)], dim=1)
            whole = torch.where((time <= depth[:, None])[:, None], begun[:, None], rest)
            value = seen.update(whole, space.cost(whole))
            trace.append(seen.cost)
            after = (depth + 1).clamp_max(space.count - 1)
            return Expansion((begun, depth + 1), prior[torch.arange(len(action), device=action.device), after], value)

        count = self.first_simulations if warm is None else self.simulations
        found = search(root, step, count, self._rule(space, count), space.count)
        return Plan(space.raw(seen.plan), seen.cost, {"best": torch.stack(trace), "policy": found.policy})

    def _random(self, space: Choices) -> Tensor:
        """Random plans [1,C,K], the same for all environments."""
        noise = space.uniform(1, self.completions, space.count)
        return (noise * space.choices).long().clamp_max(space.choices - 1)

    def _prior(self, space: Choices, start: Tensor | None) -> Tensor:
        """Logits [B,K,n] of the choices at every step."""
        prior = torch.zeros(space.problem.batch, space.count, space.choices, device=space.problem.device)
        if start is not None:
            prior = prior + self.trust * (start[:, 0].unsqueeze(-1) == torch.arange(space.choices, device=prior.device))
        return prior

    def _rule(self, space: Choices, simulations: int) -> Rule:
        if self.rule == "puct":
            return PUCT()
        noise = -(-space.uniform(1, space.choices).clamp_min(1e-12).log()).log()
        return Gumbel(simulations, noise, self.considered)


class GoalGame:
    """A world as a game for :func:`jepa.planning.tree.search`: each step earns what the distance to the goal falls by.

    The rewards of a path add up to the distance at its beginning minus that at its end. A state is the context of
    ``T`` latents and the T-1 actions between them, so that a simulation costs one step of the world; that is exact
    for worlds whose forecasts see no more than T frames.

    Args:
        world: forecasts latents
        goal: latents to reach [B,N,D]
        levels: values per dimension of the grid over a continuous action space; a choice is held for a model step
        norm: of the distance, as for ``GoalLatent``
        value: head of one number, what the rewards to come add up to at a frame [n,1,N,D] -> [n,1]; none says zero
        prior: head of one logit per choice [n,1,N,D] -> [n,n]; uniform by default
        discount: factor from one step to the next
    """

    def __init__(
        self,
        world: World,
        goal: Tensor,
        levels: int = 3,
        norm: Literal["l2", "l1", "cosine"] = "l2",
        value: nn.Module | None = None,
        prior: nn.Module | None = None,
        discount: float = 1.0,
    ) -> None:
        self.world, self.goal, self.distance = world, goal, GoalLatent(norm)
        self.value, self.prior, self.discount = value, prior, discount
        self.menu = menu_of(world.specs.action, levels).repeat(1, world.specs.action.block).to(goal.device)

    def root(self, z: Tensor, past: Tensor | None = None) -> Expansion:
        """Context z [B,T,N,D], the present last, and the raw actions within it [B,T-1,A]."""
        past = z.new_zeros(len(z), 0, self.menu.shape[1]) if past is None else past
        assert past.shape[1] == z.shape[1] - 1, f"{z.shape[1]} latents want {z.shape[1] - 1} actions: {past.shape}"
        return self._arrive(z, past)

    def step(self, state: tuple[Tensor, ...], action: Tensor) -> Expansion:
        """States after the choices int64 [B]."""
        z, past = state
        raw = self.menu[action].unsqueeze(1)
        after = self.world.rollout(z, raw.unsqueeze(1), past)[:, 0]
        found = self._arrive(torch.cat([z, after], 1)[:, 1:], torch.cat([past, raw], 1)[:, 1:])
        found.reward = self._far(z) - self._far(found.state[0])
        return found

    def _far(self, z: Tensor) -> Tensor:
        return self.distance(z[:, -1:].unsqueeze(1), self.goal, z)[:, 0]

    def _arrive(self, z: Tensor, past: Tensor) -> Expansion:
        value, logits = z.new_zeros(len(z)), z.new_zeros(len(z), len(self.menu))
        if self.value is not None:
            value = read(self.value, z[:, -1])[:, 0]
        if self.prior is not None:
            logits = read(self.prior, z[:, -1])
        return Expansion((z, past), logits, value, discount=value.new_full((len(z),), self.discount))
