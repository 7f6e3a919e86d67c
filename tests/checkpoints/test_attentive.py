"""Published attentive probes: every layout of the releases, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jepa.checkpoints import load
from jepa.checkpoints.attentive import probe_from_published, probe_to_published
from jepa.checkpoints.export import write_official
from jepa.errors import InputError
from jepa.models.attentive import ActionAnticipator, AttentiveClassifier

PARITY = Path(__file__).parents[1] / "parity"


def fixture(depth):
    tensors = load_file(PARITY / f"attentive_depth{depth}_tiny.safetensors")
    state = {name.removeprefix("classifier."): value for name, value in tensors.items() if "classifier." in name}
    return state, tensors["tokens"], tensors["logits"]


def wrapped(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("depth", [1, 4])
def test_official_files_of_one_and_of_several_probes(tmp_path, depth):
    state, tokens, logits = fixture(depth)
    other = {name: value + 0.1 for name, value in state.items()}
    for held in (
        {"classifier": wrapped(state), "epoch": 3},  # V-JEPA
        {"classifiers": [wrapped(state)], "opt": [{}]},  # V-JEPA 2
        wrapped(state),
        state,
    ):
        torch.save(held, tmp_path / "probe.pt")
        probe = load(str(tmp_path / "probe.pt"), heads=4)
        assert isinstance(probe, AttentiveClassifier) and not probe.training
        assert (probe(tokens) - logits).abs().max() < 1e-5
    torch.save({"classifiers": [wrapped(other), wrapped(state)]}, tmp_path / "probe.pt")
    assert (load(str(tmp_path / "probe.pt"), heads=4, probe=1)(tokens) - logits).abs().max() < 1e-5
    assert (load(str(tmp_path / "probe.pt"), heads=4)(tokens) - logits).abs().max() > 1e-2
    with pytest.raises(InputError, match="probe 2 was asked of a file that holds 2"):
        load(str(tmp_path / "probe.pt"), heads=4, probe=2)
    with pytest.raises(InputError, match="untrained"):
        load(str(tmp_path / "probe.pt"), heads=4, untrained=True)


@pytest.mark.parametrize("depth", [1, 4])
def test_there_and_back(tmp_path, depth):
    state, *_ = fixture(depth)
    probe = probe_from_published(state, heads=4)
    back = probe_to_published(probe)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    write_official(probe, tmp_path / "probe.pt")
    (held,) = torch.load(tmp_path / "probe.pt", weights_only=True)["classifiers"]
    assert held.keys() == wrapped(state).keys()


@pytest.mark.parametrize(("heads", "eps"), [(4, 1e-5), (3, 1e-6)])
def test_our_files_say_the_heads_and_the_norms_of_a_probe(tmp_path, heads, eps):
    state, tokens, _ = fixture(4)
    first = probe_from_published(state, heads=heads, eps=eps)
    write_official(first, tmp_path / "probe.pt")
    second = load(str(tmp_path / "probe.pt"))
    assert second.leftovers == [] and torch.equal(second(tokens), first(tokens))
    assert not torch.equal(load(str(tmp_path / "probe.pt"), heads=2)(tokens), first(tokens))


@pytest.mark.parametrize("names", [("verb", "noun", "action"), ("action",)])
def test_a_query_and_a_layer_for_each_answer(names):
    torch.manual_seed(0)
    classes = {name: 3 + i for i, name in enumerate(names)}
    probe = ActionAnticipator(24, 3, 4, classes)
    for value in probe.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    state = probe_to_published(probe)
    assert state["pooler.query_tokens"].shape == (1, len(names), 24)
    assert {key for key in state if "classifier" in key} == {
        f"{name}_classifier.{kind}" for name in names for kind in ("weight", "bias")
    }
    again, x = probe_from_published(wrapped(state), heads=3), torch.randn(2, 9, 24)
    scores = again(x)
    assert {name: tuple(score.shape) for name, score in scores.items()} == {n: (2, c) for n, c in classes.items()}
    assert all(torch.equal(scores[name], score) for name, score in probe(x).items())
    # each answer is read from its own query
    again.pooler.query_tokens.data[:, -1] += 1
    changed = [name for name in names if not torch.equal(again(x)[name], scores[name])]
    assert changed == [names[-1]]


def test_heads_leave_no_trace(tmp_path):
    state, *_ = fixture(1)
    with pytest.raises(InputError, match="attentive probe of width 48.*give heads="):
        probe_from_published(state)
    wide = AttentiveClassifier(384, 16, 1, 2)
    assert probe_from_published(probe_to_published(wide)).pooler.cross_attention_block.xattn.heads == 16
    with pytest.raises(InputError, match="heads was given '4'"):
        torch.save(state, tmp_path / "probe.pt")
        load(str(tmp_path / "probe.pt"), heads="4")
    with pytest.raises(InputError, match="probe was given '0'"):
        load(str(tmp_path / "probe.pt"), heads=4, probe="0")
    for heads in (0, 5):
        with pytest.raises(InputError, match="heads"):
            probe_from_published(state, heads=heads)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s | {"pooler.mystery": torch.zeros(1)}, "no part for 'pooler.mystery'"),
        (lambda s: s | {"linear.gain": torch.zeros(1)}, "no part for 'linear.gain'"),
        (lambda s: {k: v for k, v in s.items() if k != "pooler.query_tokens"}, "becomes pooler.query_tokens"),
        (lambda s: {k: v for k, v in s.items() if k != "linear.bias"}, "linear.bias"),
        (lambda s: {k: v for k, v in s.items() if "blocks.1." not in k}, "blocks.1"),
        (lambda s: s | {"pooler.query_tokens": torch.zeros(48)}, "expected 3 axes"),
        (lambda s: s | {"linear.weight": torch.tensor(1.0)}, "expected 2 axes"),
        (lambda s: s | {"pooler.cross_attention_block.mlp.fc1.weight": torch.tensor(1.0)}, "expected 2 axes"),
        (lambda s: s | {"verb_classifier.weight": torch.tensor(1.0)}, "expected 2 axes"),
    ],
)
def test_damage_is_named_in_one_line(damage, message):
    state, *_ = fixture(4)
    with pytest.raises(InputError, match=message) as caught:
        probe_from_published(damage(state), heads=4)
    assert "\n" not in str(caught.value)
