"""Protocols are found by name, and episodes give fair pairs."""

import dataclasses

import pytest
import torch

from jepa.errors import InputError
from jepa.evaluation import PROTOCOLS, EvaluationProtocol, episode_pairs, find_protocol
from jepa.schema import Sample


class Store:
    """Episode e of length n has the states (e, 0), (e, 1) ... (e, n-1)."""

    def __init__(self, *lengths, columns=("state",)):
        self.lengths, self.columns = lengths, columns

    def __len__(self):
        return len(self.lengths)

    def length(self, episode):
        return self.lengths[episode]

    def read(self, episode, frames, columns=None):
        assert columns == ("state",), "only the state is needed"
        assert max(frames) < self.lengths[episode]
        if "state" not in self.columns:
            return Sample()
        return Sample(state=torch.tensor([[episode, float(frame)] for frame in frames]))


def never(state, goal):
    return torch.zeros(len(state), dtype=torch.bool)


def protocol(**changes):
    entries = {"name": "toy/v1", "env": "toy", "goals": "episodes", "offset": 5, "pairs": 300}
    return EvaluationProtocol(**entries | changes)


def test_every_protocol_is_filed_under_its_name_and_has_a_version():
    promised = {"two_rooms/v1", "two_rooms_random/v1", "pusht/swm25-50", "reacher/25-50", "point_maze/25-50"}
    promised |= {"pusht/openloop30", "pusht/dinowm-unbounded"}
    assert promised <= set(PROTOCOLS)
    for name, entry in PROTOCOLS.items():
        assert entry.name == name and "/" in name and entry.description
    rooms, pusht = PROTOCOLS["two_rooms/v1"], PROTOCOLS["pusht/swm25-50"]
    assert (rooms.pairs, rooms.budget, rooms.goals) == (200, 80, "environment")
    assert (pusht.offset, pusht.budget, pusht.goals) == (25, 50, "episodes")


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'two_rooms/v1'") as caught:
        find_protocol("two_room/v1")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="known: two_rooms/v1, "):
        find_protocol("")


def test_protocols_are_frozen_and_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROTOCOLS["two_rooms/v1"].budget = 1000
    assert PROTOCOLS["two_rooms/v1"].with_pairs(7).pairs == 7
    for wrong in ({"pairs": 0}, {"budget": 0}, {"offset": 0}, {"judged": "end"}):
        with pytest.raises(InputError):
            protocol(**wrong)


def test_pairs_lie_the_offset_apart_in_one_held_out_episode():
    starts, goals = episode_pairs(Store(3, 20, 8, 30), protocol(), never, held_out=[0, 1, 2])
    assert starts.shape == goals.shape == (300, 2)
    assert torch.equal(starts[:, 0], goals[:, 0]) and torch.equal(goals[:, 1] - starts[:, 1], torch.full((300,), 5.0))
    assert set(starts[:, 0].tolist()) == {1.0, 2.0}, "episode 0 is too short, episode 3 is not held out"


def test_every_window_is_drawn_and_the_last_one_too():
    """One published reader never uses the last valid start."""
    starts, _ = episode_pairs(Store(12, 9), protocol(pairs=3000), never)
    counts = {(e, f): 0 for e, f in starts.int().tolist()}
    for e, f in starts.int().tolist():
        counts[e, f] += 1
    assert set(counts) == {(0, f) for f in range(7)} | {(1, f) for f in range(4)}
    assert min(counts.values()) > 0.7 * 3000 / 11


def test_fewer_pairs_are_the_first_of_more_and_the_seed_decides():
    store = Store(50, 50)
    many, few = episode_pairs(store, protocol(), never)[0], episode_pairs(store, protocol(pairs=10), never)[0]
    assert torch.equal(many[:10], few)
    assert not torch.equal(episode_pairs(store, protocol(seed=1), never)[0], many)


@pytest.mark.parametrize("store,held_out", [(Store(5, 4), None), (Store(20), []), (Store(20, columns=()), None)])
def test_episodes_that_cannot_give_pairs_are_refused(store, held_out):
    with pytest.raises(InputError) as caught:
        episode_pairs(store, protocol(), never, held_out)
    assert "\n" not in str(caught.value)


def test_starts_that_are_already_solved_are_left_out_where_the_protocol_says_so():
    def early(state, goal):
        return state[:, 1] < 20

    starts, _ = episode_pairs(Store(50), protocol(unsolved=True), early)
    assert len(starts) == 300 and starts[:, 1].min() == 20
    assert episode_pairs(Store(50), protocol(), early)[0][:, 1].min() == 0
    with pytest.raises(InputError, match="move further"):
        episode_pairs(Store(50), protocol(unsolved=True, pairs=3), lambda s, g: torch.ones(1, dtype=torch.bool))


def test_the_three_rules_on_pusht_differ_in_what_papers_differ_in():
    rules = [PROTOCOLS[f"pusht/{name}"] for name in ("swm25-50", "openloop30", "dinowm-unbounded")]
    assert [(rule.offset, rule.budget) for rule in rules] == [(25, 50), (30, 30), (25, 250)]
    assert [rule.judged for rule in rules] == ["any", "end", "end"]
    assert [rule.stops for rule in rules] == [True, False, False]
    assert [rule.open_loop for rule in rules] == [False, True, False]
    assert {rule.pairs for rule in rules} == {200}
