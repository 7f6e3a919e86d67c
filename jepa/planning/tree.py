"""Monte Carlo tree search over a learned model, for a batch of roots at once, on arrays.

The search never sees a model: it is given what is known of the roots, and a function from states and actions to what
is known of the next states. All roots grow one node per simulation; the trees are tensors with an axis for their
nodes, and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jepa.errors import InputError

State = tuple[Tensor, ...]  # each [B,...]


@dataclass
class Expansion:
    """What is known of B states on arrival."""

    state: State
    logits: Tensor  # [B,n] prior over the actions
    value: Tensor  # [B] of what is still to come
    reward: Tensor | None = None  # [B] of the step that led here; zero by default
    discount: Tensor | None = None  # [B] factor of what comes after that step, 0 where it ended; one by default


Step = Callable[[State, Tensor], Expansion]  # states [B,...] and actions int64 [B]


class Tree:
    """The trees of B roots, node 0 being the root: all arrays [B,M], with n actions [B,M,n]."""

    def __init__(self, root: Expansion, simulations: int) -> None:
        batch, actions = root.logits.shape
        nodes = (batch, simulations + 1)
        self.rows = torch.arange(batch, device=root.logits.device)
        self.states = tuple(part.new_zeros(*nodes, *part.shape[1:]) for part in root.state)
        self.logits = root.logits.new_zeros(*nodes, actions)
        self.value, self.mean, self.reward, self.discount = (root.value.new_zeros(nodes) for _ in range(4))
        self.visits = torch.zeros_like(self.value)
        self.child = torch.full((*nodes, actions), -1, device=self.rows.device)
        self.parent = torch.zeros(nodes, dtype=torch.long, device=self.rows.device)
        # the least and the greatest value of an action that was seen, of each tree
        self.low, self.high = (root.value.new_full((batch,), sign * torch.inf) for sign in (1, -1))
        self.write(0, root)
        self.visits[:, 0], self.mean[:, 0] = 1, root.value

    def write(self, slot: int, found: Expansion) -> None:
        """Put what is known into one node of every tree."""
        for mine, part in zip(self.states, found.state):
            mine[:, slot] = part
        self.logits[:, slot], self.value[:, slot] = found.logits, found.value
        self.reward[:, slot] = 0 if found.reward is None else found.reward
        self.discount[:, slot] = 1 if found.discount is None else found.discount

    def state(self, node: Tensor) -> State:
        return tuple(part[self.rows, node] for part in self.states)

    def actions(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Visits and values of the actions at one node of each tree [B] -> [B,n] each; the value is 0 if unvisited."""
        child = self.child[self.rows, node]
        known, index = child >= 0, child.clamp_min(0)
        visits = self.visits.gather(1, index) * known
        q = self.reward.gather(1, index) + self.discount.gather(1, index) * self.mean.gather(1, index)
        return visits, q * known

    def scale(self, q: Tensor) -> Tensor:
        """Values [B,n] to [0,1] between the least and the greatest that was seen; 0 where these are one."""
        low, high = self.low.unsqueeze(1), self.high.unsqueeze(1)
        return torch.where(high > low, ((q - low) / (high - low)).clamp(0, 1), torch.zeros_like(q))

    def backup(self, leaf: Tensor, value: Tensor, levels: int) -> None:
        """Tell a leaf of each tree [B] and all nodes above it what a simulation found [B]."""
        node, live, gain = leaf, torch.ones_like(leaf, dtype=torch.bool), value
        for _ in range(levels + 1):
            at = (self.rows, node)
            count, old = self.visits[at], self.mean[at]
            mean = torch.where(live, (old * count + gain) / (count + 1), old)
            self.visits[at], self.mean[at] = count + live, mean
            inner = live & (node > 0)
            q = self.reward[at] + self.discount[at] * mean
            self.low = torch.where(inner, torch.minimum(self.low, q), self.low)
            self.high = torch.where(inner, torch.maximum(self.high, q), self.high)
            gain = self.reward[at] + self.discount[at] * gain
            node, live = self.parent[at], inner


class Rule(Protocol):
    """How a search descends, and what it concludes."""

    def root(self, tree: Tree, simulation: int) -> Tensor:
        """The action to try at the roots [B]."""

    def inner(self, tree: Tree, node: Tensor) -> Tensor:
        """The action to try at one node of each tree [B] -> [B]."""

    def conclude(self, tree: Tree) -> tuple[Tensor, Tensor]:
        """The action to take [B] and the improved policy [B,n]."""


class PUCT:
    """MuZero's rule (Schrittwieser et al. 2020): scaled value plus prior times what the visits have not yet shown.

    Q + P sqrt(N) / (1 + n) (c_init + log((N + c_base + 1) / c_base)), where N are the visits of the node, at least
    one, and n those of the action; the value of an action that was never tried is the least. There is no noise at the
    root, which serves self-play, not planning.

    Args:
        c_init: weight of the prior
        c_base: visits at which that weight has grown by log 2
    """

    def __init__(self, c_init: float = 1.25, c_base: float = 19652.0) -> None:
        self.c_init, self.c_base = c_init, c_base

    def root(self, tree: Tree, simulation: int) -> Tensor:
        return self.inner(tree, torch.zeros_like(tree.rows))

    def inner(self, tree: Tree, node: Tensor) -> Tensor:
        visits, q = tree.actions(node)
        total = visits.sum(1, keepdim=True)
        weight = self.c_init + ((total + self.c_base + 1) / self.c_base).log()
        prior = tree.logits[tree.rows, node].softmax(-1)
        explore = prior * total.clamp_min(1).sqrt() / (1 + visits) * weight
        return (torch.where(visits > 0, tree.scale(q), torch.zeros_like(q)) + explore).argmax(1)

    def conclude(self, tree: Tree) -> tuple[Tensor, Tensor]:
        """The most visited action, of equals the one of greater value; the policy is the share of visits."""
        visits, q = tree.actions(torch.zeros_like(tree.rows))
        # scaled values are at most one: half of them decides only between equals
        return (visits + 0.5 * tree.scale(q)).argmax(1), visits / visits.sum(1, keepdim=True).clamp_min(1)


def halving(considered: int, simulations: int) -> list[int]:
    """Sequential halving (Karnin et al. 2013): how often the root action of each simulation was tried before.

    All considered actions are tried equally often, then the better half of them, and so on down to two.
    """
    sequence: list[int] = []
    rounds, tried = max(1, math.ceil(math.log2(considered))), 0
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (rounds * considered))):
            sequence += [tried] * considered
            tried += 1
        considered = min(considered, max(2, considered // 2))
    return sequence[:simulations]


class Gumbel:
    """Gumbel MuZero's rule (Danihelka et al. 2022): a policy that improves on the prior even after few simulations.

    At the root, the ``considered`` actions of greatest prior plus Gumbel noise compete by sequential halving. Below
    it, visits follow the improved policy softmax(logits + sigma(q)), where sigma(q) = (c_visit + max n) c_scale q of
    the scaled values, and actions that were never tried have the mixed value of the node.

    Args:
        noise: standard Gumbel noise of the root's actions [1,n] or [B,n]; none gives the greedy search of evaluation
        considered: actions that compete at the root
        c_visit: visits that a value counts for at least
        c_scale: weight of the scaled values beside logits; 1 is published for board games, 0.1 for Atari
        simulations: how many there will be
    """

    def __init__(
        self,
        simulations: int,
        noise: Tensor | None = None,
        considered: int = 16,
        c_visit: float = 50.0,
        c_scale: float = 0.1,
    ) -> None:
        if considered < 1 or simulations < 1:
            raise InputError(f"Gumbel was given considered={considered}, simulations={simulations}; expected 1 or more")
        self.noise, self.considered, self.simulations = noise, considered, simulations
        self.c_visit, self.c_scale = c_visit, c_scale

    def _improved(self, tree: Tree, node: Tensor) -> tuple[Tensor, Tensor]:
        """Visits and improved logits [B,n]."""
        visits, q = tree.actions(node)
        logits, total = tree.logits[tree.rows, node], visits.sum(1, keepdim=True)
        tried = logits.softmax(-1) * (visits > 0)
        mean = (tried * q).sum(1, keepdim=True) / tried.sum(1, keepdim=True).clamp_min(1e-12)
        mixed = (tree.value[tree.rows, node].unsqueeze(1) + total * mean) / (1 + total)
        completed = tree.scale(torch.where(visits > 0, q, mixed))
        return visits, logits + (self.c_visit + visits.amax(1, keepdim=True)) * self.c_scale * completed

    def _root(self, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        visits, logits = self._improved(tree, torch.zeros_like(tree.rows))
        return visits, logits, logits if self.noise is None else logits + self.noise

    def root(self, tree: Tree, simulation: int) -> Tensor:
        visits, _, score = self._root(tree)
        schedule = halving(min(self.considered, visits.shape[1]), self.simulations)
        return score.masked_fill(visits != schedule[simulation], -torch.inf).argmax(1)

    def inner(self, tree: Tree, node: Tensor) -> Tensor:
        visits, logits = self._improved(tree, node)
        return (logits.softmax(-1) - visits / (1 + visits.sum(1, keepdim=True))).argmax(1)

    def conclude(self, tree: Tree) -> tuple[Tensor, Tensor]:
        """The winner among the most visited actions; the policy is softmax of the improved logits."""
        visits, logits, score = self._root(tree)
        most = visits == visits.amax(1, keepdim=True)
        return score.masked_fill(~most, -torch.inf).argmax(1), logits.softmax(-1)


@dataclass
class Searched:
    """What a search concluded."""

    action: Tensor  # int64 [B] to take at the roots
    policy: Tensor  # [B,n] improved over the prior
    value: Tensor  # [B] of the roots
    visits: Tensor  # [B,n] of the roots' actions
    q: Tensor  # [B,n] values of the roots' actions; 0 where never tried
    tree: Tree


def search(root: Expansion, step: Step, simulations: int, rule: Rule, depth: int | None = None) -> Searched:
    """Grow the trees of B roots by one node per simulation, and conclude.

    Args:
        root: what is known of the roots
        step: what is known after states [B,...] and actions int64 [B]; called once per simulation, for all trees
        simulations: steps of the model per root
        rule: :class:`PUCT` or :class:`Gumbel`
        depth: steps after which nothing more is expanded: the value found there is counted again; unlimited by default
    """
    if simulations < 1 or (depth is not None and depth < 1):
        raise InputError(f"the search was given simulations={simulations}, depth={depth}; each must be at least 1")
    tree = Tree(root, simulations)
    for simulation in range(simulations):
        levels = min(simulation + 1, depth or simulation + 1)
        node, parent, action, full = _descend(tree, rule, simulation, levels)
        found = step(tree.state(parent), action)
        slot = simulation + 1
        tree.write(slot, found)
        tree.parent[:, slot] = parent
        leaf = torch.where(full, node, slot)
        # where the depth is reached, the child is there already and the new node stays unconnected
        tree.child[tree.rows, parent, action] = leaf
        tree.backup(leaf, tree.value[tree.rows, leaf], levels)
    action, policy = rule.conclude(tree)
    visits, q = tree.actions(torch.zeros_like(tree.rows))
    return Searched(action, policy, tree.mean[:, 0], visits, q, tree)


def _descend(tree: Tree, rule: Rule, simulation: int, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follow the rule from the roots: the last node, its parent and action [B], and whether it was there already."""
    node, parent, action = (torch.zeros_like(tree.rows) for _ in range(3))
    inside = torch.ones_like(tree.rows, dtype=torch.bool)
    for level in range(levels):
        chosen = rule.inner(tree, node) if level else rule.root(tree, simulation)
        child = tree.child[tree.rows, node, chosen]
        parent, action = torch.where(inside, node, parent), torch.where(inside, chosen, action)
        inside = inside & (child >= 0)
        node = torch.where(inside, child, node)
    return node, parent, action, inside
