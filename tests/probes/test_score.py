"""Scores against their definitions, and their intervals against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from probes import score
from probes.score import Answers


def guesses(spread: float, seed: int = 0, episodes: int = 6) -> Answers:
    """Two targets guessed with an error of this spread, ten examples an episode."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(10 * episodes, 2, generator=torch.Generator().manual_seed(0)) + 100
    guess = y + spread * torch.randn(10 * episodes, 2, generator=generator)
    return Answers(guess, y, np.repeat(np.arange(episodes) * 7, 10), y.mean(0), ("a", "b"))


def chosen(right: list[int], classes: int = 2) -> Answers:
    """Class 0 throughout, each example an episode; answered right (1) or as another class (0)."""
    prediction = torch.zeros(len(right), classes)
    prediction[range(len(right)), [1 - each for each in right]] = 1.0
    y = torch.zeros(len(right), dtype=torch.int64)
    return Answers(prediction, y, np.arange(len(right)), torch.tensor(0))


def r2(answers: Answers, rows=slice(None)) -> float:
    truth, guess = answers.y[rows].double(), answers.prediction[rows].double()
    return float((1 - ((guess - truth) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)).mean())


def test_r2_agrees_with_its_definition_and_resampling_with_brute_force():
    answers = guesses(0.5)
    result = score.scored([answers]).numbers
    assert result["r2"] == pytest.approx(r2(answers), abs=1e-4) == pytest.approx(score.point(answers), abs=1e-4)
    assert set(result["targets"]) == {"a", "b"} and result["error_of_mean"] == pytest.approx(1)
    rng, draws = np.random.default_rng(1), []
    for _ in range(2000):
        picked = rng.choice(np.unique(answers.episode), 6)
        draws.append(r2(answers, np.concatenate([np.flatnonzero(answers.episode == each) for each in picked])))
    assert np.allclose(result["r2_interval"], np.percentile(draws, [2.5, 97.5]), atol=0.02)


def test_the_headline_is_accuracy_or_mean_r2():
    assert score.headline(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])) == 0.5
    y = torch.tensor([[0.0, 1e4], [2.0, 1e4 + 2]])  # the first is hit, of the second the mean is answered
    assert score.headline(torch.tensor([[0.0, 1e4 + 1], [2.0, 1e4 + 1]]), y) == pytest.approx(0.5)


def test_several_seeds_are_averaged_and_resampled_beside_the_episodes():
    """One seed is good and one is not: most of what is unknown is the seed, which a third could be like either."""
    answers = [guesses(0.1, 1), guesses(1.0, 2), guesses(0.1, 3)]
    result = score.scored(answers)
    assert result.numbers["r2"] == pytest.approx(np.mean([r2(each) for each in answers]), abs=1e-4)
    rng, draws = np.random.default_rng(1), []
    for _ in range(1000):
        picked = rng.choice(np.unique(answers[0].episode), 6)
        rows = np.concatenate([np.flatnonzero(answers[0].episode == each) for each in picked])
        draws.append(np.mean([r2(answers[each], rows) for each in rng.integers(3, size=3)]))
    expected = np.percentile(draws, [2.5, 97.5])
    assert np.allclose(result.numbers["r2_interval"], expected, atol=0.05)
    alone = score.scored(answers[1:2]).numbers["r2_interval"]
    assert expected[1] - expected[0] > 2 * (alone[1] - alone[0])


def test_a_seed_that_changes_nothing_does_not_widen_the_interval():
    answers = guesses(0.5)
    one, three = (score.scored([answers] * count).numbers for count in (1, 3))
    assert three["r2"] == pytest.approx(one["r2"]) and three["r2_interval"] == pytest.approx(one["r2_interval"])


def test_resampling_in_pieces_draws_the_same(monkeypatch):
    whole = score.scored([guesses(0.5)])
    monkeypatch.setattr(score, "AT_ONCE", 6 * 7)
    assert np.array_equal(score.scored([guesses(0.5)]).draws, whole.draws)


def test_a_single_episode_has_no_interval():
    result = score.scored([guesses(0.5, episodes=1)] * 2).numbers
    assert result["r2_interval"] is None and 0 < result["r2"] < 1


def test_classes_weigh_alike_in_the_class_mean_and_are_counted_in_the_confusion():
    y = torch.tensor([0] * 8 + [1] * 2)
    answers = [
        Answers(torch.eye(2)[torch.tensor(said)], y, np.arange(10), torch.tensor(0))
        for said in ([0] * 10, [0] * 8 + [0, 1])
    ]
    result = score.scored(answers).numbers
    assert result["accuracy"] == pytest.approx(0.85) and result["accuracy_of_most_common"] == pytest.approx(0.8)
    assert result["class_mean_accuracy"] == pytest.approx((1 + 0.25) / 2)
    assert result["classes"] == {"0": {"accuracy": 1.0, "examples": 8}, "1": {"accuracy": 0.25, "examples": 2}}
    assert result["confusion"] == [[16, 0], [3, 1]]
    many = Answers(torch.zeros(3, 51), torch.tensor([0, 1, 50]), np.arange(3), torch.tensor(0))
    assert score.scored([many]).numbers["confusion"] is None


def test_the_clips_of_a_video_vote():
    """Two of three clips are wrong by little, one is right by much: the video is right. The other is wrong."""
    scores = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.95, 0.05], [0.0, 1.0], [0.3, 0.7]]).log()
    episode, zero = np.array([7, 7, 7, 9, 9]), torch.tensor(0)
    answers = Answers(scores, torch.zeros(5, dtype=torch.int64), episode, zero)
    result = score.scored([answers]).numbers
    assert result["accuracy"] == pytest.approx(0.2) and result["episodes_as_one"]["accuracy"] == 0.5
    assert result["classes"] == {"0": {"accuracy": pytest.approx(0.2), "examples": 5}}
    whole = score.voted(answers)
    assert torch.allclose(whole.prediction.exp(), torch.tensor([[1.75 / 3, 1.25 / 3], [0.15, 0.85]]))
    assert whole.episode.tolist() == [7, 9]
    changing = Answers(scores, torch.tensor([0, 1, 0, 0, 0]), episode, zero)
    assert score.voted(changing) is None and score.scored([changing]).numbers["episodes_as_one"] is None
    apart = Answers(scores, answers.y, np.arange(5), zero)
    assert score.scored([apart]).numbers["episodes_as_one"] is None


def test_a_gain_is_measured_on_the_same_draws():
    """Where both are right on the same half of the episodes, the gain is certain, though neither accuracy is."""
    half = score.scored([chosen([1] * 20 + [0] * 20)])
    assert score.gain(half, score.scored([chosen([1] * 20 + [0] * 20)])) == {"gain": 0.0, "gain_interval": [0.0, 0.0]}
    more = score.gain(score.scored([chosen([1] * 20 + [0] * 16 + [1] * 4)]), half)
    assert more["gain"] == pytest.approx(0.1) and 0 < more["gain_interval"][0] < 0.1 < more["gain_interval"][1]


def test_a_gain_is_paired_seed_by_seed():
    """The seeds differ by much, but by as much on both sides."""
    mine = [chosen([1] * count + [0] * (40 - count)) for count in (39, 21, 30)]
    other = [chosen([1] * (count - 2) + [0] * (42 - count)) for count in (39, 21, 30)]
    first, second = score.scored(mine), score.scored(other)
    low, high = score.gain(first, second)["gain_interval"]
    assert 0 <= low < 0.05 < high < 0.15
    assert first.numbers["accuracy_interval"][1] - first.numbers["accuracy_interval"][0] > 3 * (high - low)


def test_a_constant_target_has_no_r2():
    with pytest.raises(InputError, match="target x is constant over the test episodes"):
        score.scored([Answers(torch.zeros(4, 1), torch.ones(4, 1), np.arange(4), torch.ones(1), ("x",))])
