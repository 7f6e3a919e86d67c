"""Tree search on small deterministic games whose best play is known by brute force."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jepa.errors import InputError
from jepa.planning.tree import PUCT, Expansion, Gumbel, halving, search


class Game:
    """A whole tree of ``depth`` moves: state is (node, moves made), every edge has a reward; values are unknown, or
    the best that is still to come with an error."""

    def __init__(self, reward, choices, depth, logits=None, error=None):
        self.reward, self.choices, self.depth = reward, choices, depth  # reward [B,nodes], of arriving at a node
        self.logits = torch.zeros(len(reward), choices) if logits is None else logits
        self.values, self.calls = torch.zeros_like(reward), 0
        if error is not None:
            noise = error * torch.randn(reward.shape, generator=torch.Generator().manual_seed(9))
            self.values = torch.cat(self.levels(), 1) + noise

    @classmethod
    def random(cls, batch, choices, depth, seed=0, error=None):
        nodes = sum(choices**level for level in range(depth + 1))
        reward = torch.rand(batch, nodes, generator=torch.Generator().manual_seed(seed))
        return cls(reward, choices, depth, error=error)

    def root(self):
        node = torch.zeros(len(self.reward), dtype=torch.long)
        return Expansion((node, node.clone()), self.logits, self.values[:, 0])

    def step(self, state, action):
        self.calls += 1
        node, moves = state
        after = node * self.choices + 1 + action
        known = after.clamp_max(self.reward.shape[1] - 1)
        reward = self.reward.gather(1, known[:, None])[:, 0]
        value = self.values.gather(1, known[:, None])[:, 0]
        going = (moves + 1 < self.depth).float()
        return Expansion((known, moves + 1), torch.zeros_like(self.logits), value, reward, going)

    def levels(self):
        """The greatest sum of rewards that is still to come at the nodes of each level, a list of [B,nodes]."""
        values = [torch.zeros(len(self.reward), self.choices**self.depth)]
        for level in range(self.depth, 0, -1):
            values.insert(0, self._arriving(values[0], level).unflatten(1, (-1, self.choices)).amax(2))
        return values

    def _arriving(self, value, level):
        first = sum(self.choices**lower for lower in range(level))
        return value + self.reward[:, first : first + self.choices**level]

    def best(self):
        """The greatest sum of rewards after each first move [B,n]."""
        return self._arriving(self.levels()[1], 1)


def rules(simulations):
    return [PUCT(), Gumbel(simulations)]


def trap():
    """Going left pays 0.5 at once and nothing later; going right pays nothing at once and 1 after two more moves."""
    reward = torch.zeros(1, 15)
    reward[0, 1], reward[0, 13] = 0.5, 1.0  # right, left, right... is node 2, 6, 13
    return Game(reward, 2, 3)


@pytest.mark.parametrize("kind", [0, 1])
def test_it_sees_through_a_trap_where_the_greedy_move_fails(kind):
    game = trap()
    assert game.reward[0, 1] > game.reward[0, 2] and game.best()[0].tolist() == [0.5, 1.0]
    found = search(game.root(), game.step, 160, rules(160)[kind], 3)
    assert found.action.tolist() == [1] and found.policy[0, 1] > 0.5
    assert found.visits.sum() == 160 and game.calls == 160
    shallow = search(game.root(), game.step, 64, rules(64)[kind], 1)
    assert shallow.action.tolist() == [0], "a search of one move is greedy"


@pytest.mark.parametrize("choices,depth,simulations", [(2, 4, 200), (3, 3, 250), (5, 2, 200)])
@pytest.mark.parametrize("kind", [0, 1])
def test_with_enough_simulations_it_plays_as_brute_force_does(kind, choices, depth, simulations):
    """MuZero's rule without any values; Gumbel's, whose visits follow the values, with rough ones."""
    game = Game.random(24, choices, depth, error=0.1 if kind else None)
    best = game.best()
    found = search(game.root(), game.step, simulations, rules(simulations)[kind], depth)
    regret = best.amax(1) - best.gather(1, found.action[:, None])[:, 0]
    assert (regret == 0).float().mean() > 0.9 and regret.max() < 0.15, regret.tolist()


@pytest.mark.parametrize("kind", [0, 1])
def test_a_bandit_is_searched_once_per_arm_and_then_known(kind):
    reward = torch.tensor([[0.0, 0.3, 0.9, 0.1, 0.5], [0.0, -4.0, -7.0, -3.0, -5.0]])
    found = search(Game(reward, 4, 1).root(), Game(reward, 4, 1).step, 60, rules(60)[kind], 1)
    assert found.action.tolist() == [1, 2]
    assert torch.allclose(found.q.gather(1, found.action[:, None])[:, 0], torch.tensor([0.9, -3.0]))
    assert (found.visits > 0).all() or kind == 0


def test_values_are_means_of_discounted_returns():
    """Two moves, one way: the values have closed forms."""
    rewards, discount = torch.tensor([1.0, 2.0, 4.0]), 0.5

    def step(state, action):
        moves = state[0]
        done = (moves + 1 >= 3).float()
        return Expansion(
            (moves + 1,), torch.zeros(1, 1), 8.0 * (1 - done), rewards[moves.clamp_max(2)], discount * (1 - done)
        )

    root = Expansion((torch.zeros(1, dtype=torch.long),), torch.zeros(1, 1), torch.tensor([16.0]))
    found = search(root, step, 3, PUCT())
    returns = [16.0, 1 + 0.5 * 8, 1 + 0.5 * (2 + 0.5 * 8), 1 + 0.5 * (2 + 0.5 * 4)]
    assert found.value.item() == pytest.approx(sum(returns) / 4)
    assert found.visits.tolist() == [[3.0]] and found.tree.visits[0].tolist() == [4, 3, 2, 1]
    assert found.q.item() == pytest.approx(sum(returns[1:]) / 3)


@pytest.mark.parametrize("kind", [0, 1])
def test_roots_do_not_meet(kind):
    game = Game.random(7, 3, 3, seed=2)
    game.logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(3))
    together = search(game.root(), game.step, 40, rules(40)[kind], 3)
    for row in range(7):
        single = Game(game.reward[row : row + 1], 3, 3, game.logits[row : row + 1])
        alone = search(single.root(), single.step, 40, rules(40)[kind], 3)
        for name in ("action", "policy", "value", "visits", "q"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_gumbel_improves_on_the_prior_in_expectation_and_with_simulations():
    """The expected value of the chosen action is above that of the prior, with as few as two simulations."""
    draw = torch.Generator().manual_seed(0)
    batch, choices = 4000, 16
    reward = torch.cat([torch.zeros(1, 1), torch.rand(1, choices, generator=draw)], 1).expand(batch, -1)
    logits = torch.randn(1, choices, generator=draw).expand(batch, -1)
    game = Game(reward, choices, 1, logits)
    prior = (logits[0].softmax(-1) * reward[0, 1:]).sum()
    values = []
    for simulations in (2, 4, 16):
        noise = -(-torch.rand(batch, choices, generator=draw).clamp_min(1e-12).log()).log()
        found = search(game.root(), game.step, simulations, Gumbel(simulations, noise, c_scale=1.0), 1)
        values.append(reward[:, 1:].gather(1, found.action[:, None]).mean())
        improved = (found.policy * reward[:, 1:]).sum(1).mean()
        assert values[-1] > prior + 0.02 and improved > prior, (simulations, values[-1], improved, prior)
    assert values == sorted(values) and torch.isclose(values[-1], reward.max(), atol=1e-3)


def test_without_simulations_worth_of_difference_gumbel_samples_the_prior():
    """All values alike: the action is a sample of the prior (the Gumbel-max trick), and the policy the prior itself."""
    batch, draw = 20000, torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(batch, -1)
    game = Game(torch.zeros(batch, 4), 3, 1, logits)
    noise = -(-torch.rand(batch, 3, generator=draw).log()).log()
    found = search(game.root(), game.step, 3, Gumbel(3, noise), 1)
    share = torch.bincount(found.action, minlength=3) / batch
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.015) and torch.allclose(found.policy, logits.softmax(-1))


@pytest.mark.parametrize(
    "considered,simulations", [(2, 2), (4, 8), (4, 50), (16, 16), (16, 200), (5, 33), (1, 6), (8, 3)]
)
def test_sequential_halving_tries_all_then_the_better_half(considered, simulations):
    """The schedule can always be followed: there is an action that was tried as often as it says."""
    schedule = halving(considered, simulations)
    assert len(schedule) == simulations and not any(schedule[:considered])
    visits = [0] * considered
    for wanted in schedule:
        action = visits.index(wanted)  # an action of a lower number is the better one
        visits[action] += 1
    assert sum(visits) == simulations and visits == sorted(visits, reverse=True)
    if considered == 4 and simulations == 8:
        assert visits == [3, 3, 1, 1]


def test_the_prior_is_what_puct_tries_first():
    reward = torch.zeros(1, 5)
    game = Game(reward, 4, 1, torch.tensor([[0.0, 0.0, 3.0, 0.0]]))
    tried = []
    search(game.root(), lambda s, a: tried.append(a.item()) or game.step(s, a), 1, PUCT(), 1)
    assert tried == [2]


@pytest.mark.parametrize("kind", [0, 1])
def test_scaled_values_make_the_search_blind_to_the_unit_of_reward(kind):
    game = Game.random(8, 3, 3, seed=4)
    scaled = Game(1024 * game.reward, 3, 3)  # a power of two, which rounds alike
    one, other = (search(g.root(), g.step, 40, rules(40)[kind], 3) for g in (game, scaled))
    assert torch.equal(one.visits, other.visits) and torch.equal(one.action, other.action)


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(function), f"host reads: {function}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [0, 1])
def test_nothing_is_read_by_the_host(kind):
    game = Game.random(3, 3, 3)
    with NoSync():
        search(game.root(), game.step, 8, rules(8)[kind], 3)


@pytest.mark.parametrize("simulations,depth", [(0, None), (4, 0)])
def test_wrong_settings_are_refused_in_one_line(simulations, depth):
    game = trap()
    with pytest.raises(InputError) as caught:
        search(game.root(), game.step, simulations, PUCT(), depth)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        Gumbel(4, considered=0)


def test_without_a_depth_the_tree_grows_where_it_pays():
    """A corridor: only always taking the first of two moves pays, and the search digs down it."""

    def step(state, action):
        alive = state[0] * (action == 0)
        return Expansion((alive,), torch.zeros(1, 2), torch.zeros(1), alive.float(), alive.float())

    root = Expansion((torch.ones(1, dtype=torch.long),), torch.zeros(1, 2), torch.zeros(1))
    found = search(root, step, 40, PUCT())
    assert found.action.item() == 0 and found.value > math.log2(40) / 2
