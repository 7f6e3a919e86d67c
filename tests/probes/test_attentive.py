from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from jepa.errors import InputError
from probes.attentive import AttentiveClassifier, AttentiveProbe, from_published, to_published

PARITY = Path(__file__).parents[1] / "parity"


@pytest.mark.parametrize("depth", [1, 4])
def test_equals_the_published_probe(depth):
    with safe_open(PARITY / f"attentive_depth{depth}_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    state = {name.removeprefix("classifier."): value for name, value in tensors.items() if "classifier." in name}
    model = AttentiveClassifier(config["embed_dim"], config["num_heads"], config["depth"], config["num_classes"])
    model.load_state_dict(from_published(state))
    assert (model(tensors["tokens"]) - tensors["logits"]).abs().max() < 1e-5
    assert to_published(model.state_dict()).keys() == state.keys()


@pytest.mark.parametrize("depth", [1, 3])
def test_the_order_of_tokens_does_not_matter(depth):
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(3, 2, 6, 8, generator=generator), torch.randn(3, 2, generator=generator)
    probe = AttentiveProbe(depth=depth, heads=2)
    probe.build(z, y)
    order = torch.randperm(12, generator=generator)
    shuffled = z.flatten(1, 2)[:, order].unflatten(1, (2, 6))
    assert torch.allclose(probe(z), probe(shuffled), atol=1e-5)
    changed = z.clone()
    changed[0, 1, 3] = 9 * torch.randn(8, generator=generator)
    assert not torch.equal(probe(z)[0], probe(changed)[0])
    assert torch.equal(probe(z)[1:], probe(changed)[1:])


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(InputError, match="heads=3 on latents of width 8"):
        AttentiveProbe(heads=3).build(torch.zeros(2, 1, 4, 8), torch.zeros(2, 1))
