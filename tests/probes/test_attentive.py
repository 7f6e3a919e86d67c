from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from jepa.checkpoints.attentive import probe_from_published
from jepa.errors import InputError
from jepa.models.attentive import AttentivePooler
from probes.attentive import AttentiveProbe

PARITY = Path(__file__).parents[1] / "parity"


@pytest.mark.parametrize("depth", [1, 4])
def test_equals_the_published_probe(depth):
    with safe_open(PARITY / f"attentive_depth{depth}_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    state = {name.removeprefix("classifier."): value for name, value in tensors.items() if "classifier." in name}
    published = probe_from_published(state, heads=config["num_heads"])
    probe = AttentiveProbe(depth=depth, heads=config["num_heads"], classes=config["num_classes"])
    probe.build(tensors["tokens"].unsqueeze(1), torch.zeros(1, dtype=torch.int64))
    probe.head.load_state_dict(published.state_dict())
    assert (probe(tensors["tokens"].unsqueeze(1)) - tensors["logits"]).abs().max() < 1e-5


def test_absorbed_weights_give_the_numbers_and_gradients_of_projected_tokens():
    """The formula as published: keys and values of every token."""
    torch.manual_seed(0)
    pooler, x = AttentivePooler(12, heads=3).double(), torch.randn(5, 7, 12, dtype=torch.float64, requires_grad=True)
    for weight in pooler.parameters():
        torch.nn.init.normal_(weight, std=0.5)

    def published() -> torch.Tensor:
        block = pooler.cross_attention_block
        query = pooler.query_tokens.expand(5, -1, -1)
        k, v = block.xattn.kv(block.norm1(x)).chunk(2, dim=-1)
        heads = [y.unflatten(-1, (3, 4)).transpose(1, 2) for y in (block.xattn.q(query), k, v)]
        query = query + F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return query + block.mlp(block.norm2(query))

    wanted = [x, *pooler.parameters()]
    weights = torch.randn(5, 1, 12, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((out * weights).sum(), wanted) for out in (pooler(x), published()))
    assert torch.allclose(pooler(x), published(), atol=1e-10)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(mine, theirs))


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
