from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from probes import neighbours
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


def clustered(count, seed):
    """Rows around 40 centres, as encoders make them: neighbours are in few places."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, 16, generator=torch.Generator().manual_seed(9))
    number = torch.randint(40, (count,), generator=generator)
    return (centres[number] + 0.4 * torch.randn(count, 16, generator=generator))[:, None, None], number


def similarities(train, test, y, **options):
    probe = NeighbourProbe(k=10, **options)
    probe.build(train[:1], y)
    probe.fit_batches(list(zip(train.split(1700), y.split(1700))))
    return probe, probe.neighbours(test)[0]


def test_lists_find_most_of_the_neighbours_and_all_of_them_when_all_are_searched():
    (train, y), (test, _) = clustered(6000, 0), clustered(200, 1)
    _, exact = similarities(train, test, y[:, None].float())
    probe, found = similarities(train, test, y[:, None].float(), index="ivf")
    assert probe.places.shape == (77, 16) and probe.bounds[-1] == 6000
    recall = (found >= exact[:, -1:] - 1e-6).float().mean()
    assert recall > 0.9 and (found <= exact + 1e-6).all()
    probe, found = similarities(train, test, y[:, None].float(), index="ivf", searched=1.0)
    assert torch.allclose(found, exact, atol=1e-6)


def test_an_inverted_file_is_a_function_of_its_examples_and_survives_a_reload():
    (train, y), (test, _) = clustered(3000, 0), clustered(50, 1)
    one, _ = similarities(train, test, y, classes=40, index="ivf")
    two, _ = similarities(train, test, y, classes=40, index="ivf")
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    copy = NeighbourProbe(k=10, classes=40, index="ivf")
    copy.build(train[:1], torch.zeros_like(y))
    copy.load_state_dict(one.state_dict())
    assert torch.equal(copy(test), one(test))


def test_a_query_whose_lists_are_short_searches_all():
    (train, y), (test, _) = clustered(400, 0), clustered(20, 1)
    probe = NeighbourProbe(k=150, index="ivf", searched=0.01)
    probe.build(train[:1], y[:, None].float())
    probe.fit(train, y[:, None].float())
    exact = NeighbourProbe(k=150)
    exact.build(train[:1], y[:, None].float())
    exact.fit(train, y[:, None].float())
    assert torch.allclose(probe.neighbours(test)[0], exact.neighbours(test)[0], atol=1e-6)


@pytest.mark.parametrize(("memory", "dtype", "width"), [(400, torch.float32, 16), (200, torch.float16, 16),
                                                        (13, torch.uint8, 2)])  # fmt: skip
def test_the_bank_takes_the_memory_that_it_is_given(memory, dtype, width):
    (train, y), (test, truth) = clustered(6000, 0), clustered(200, 1)
    probe, _ = similarities(train, test, y, classes=40, memory=memory * 1024 / 2**30)
    assert probe.bank.dtype == dtype and probe.bank.shape == (6000, width)
    assert sum(value.nbytes for value in (probe.bank,)) <= memory * 1024
    exact, _ = similarities(train, test, y, classes=40)
    right = [(one(test).argmax(1) == truth).float().mean() for one in (probe, exact)]
    assert right[0] > right[1] - 0.05 and right[1] > 0.8


def test_beyond_a_size_lists_are_made_by_themselves(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT", 100)
    probe = NeighbourProbe()
    probe.build(torch.zeros(1, 1, 1, 4), torch.zeros(101, 1))
    assert len(probe.places) == 10
    probe.build(torch.zeros(1, 1, 1, 4), torch.zeros(100, 1))
    assert len(probe.places) == 0


def test_wrong_settings_are_named():
    for options, words in (({"index": "ivff"}, "did you mean 'ivf'"), ({"searched": 0.0}, "searched=0"),
                           ({"memory": 0.0}, "memory=0")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            NeighbourProbe(**options)
    with pytest.raises(InputError, match="100000 examples of 64 features in 0.001 GiB: raise memory"):
        NeighbourProbe(index="exact", memory=1e-3).build(torch.zeros(1, 1, 1, 64), torch.zeros(100_000, 1))
