from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from probes.neighbours import NeighbourProbe


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 1, 2, 6, generator=generator), torch.randn(40, 1, 2, 6, generator=generator), generator


def brute_force(train, test, k):
    x, q = (torch.nn.functional.normalize(z.mean(2).flatten(1), dim=1) for z in (train, test))
    return (q @ x.T).topk(k, dim=1)


def test_neighbours_are_those_of_brute_force(data):
    train, test, _ = data
    probe = NeighbourProbe(k=7)
    probe.build(train, torch.zeros(500, 1))
    probe.fit(train, torch.zeros(500, 1))
    similarity, number = probe.neighbours(test)
    expected = brute_force(train, test, 7)
    assert torch.equal(number, expected.indices) and torch.allclose(similarity, expected.values, atol=1e-5)


def test_regression_is_the_weighted_mean_and_classes_the_weighted_vote(data):
    train, test, generator = data
    similarity, number = brute_force(train, test, 5)
    weight = torch.exp(similarity / 0.07)
    y = torch.randn(500, 2, generator=generator)
    probe = NeighbourProbe(k=5)
    probe.build(train, y)
    probe.fit(train, y)
    expected = (weight[..., None] * y[number]).sum(1) / weight.sum(1, keepdim=True)
    assert torch.allclose(probe(test), expected, atol=1e-4)

    labels = torch.randint(0, 4, (500,), generator=generator)
    probe = NeighbourProbe(k=5, classes=4)
    probe.build(train, labels)
    probe.fit(train, labels)
    votes = torch.stack([(weight * (labels[number] == c)).sum(1) for c in range(4)], dim=1)
    assert torch.allclose(probe(test).exp(), votes / votes.sum(1, keepdim=True), atol=1e-4)


def test_one_neighbour_recalls_the_training_data_and_survives_a_reload(data):
    train, _, generator = data
    y = torch.randn(500, 3, generator=generator)
    probe, copy = NeighbourProbe(k=1), NeighbourProbe(k=1)
    for each in (probe, copy):
        each.build(train, y)
    probe.fit(train, y)
    copy(train[:1])  # an index exists before the weights arrive
    copy.load_state_dict(probe.state_dict())
    assert torch.equal(probe(train), y) and torch.equal(copy(train), y)


def test_fewer_examples_than_neighbours():
    z, y = torch.zeros(10, 1, 1, 3), torch.zeros(10, 1)
    probe = NeighbourProbe(k=20)
    probe.build(z, y)
    with pytest.raises(InputError, match="k=20 neighbours among 10 training examples"):
        probe.fit(z, y)
