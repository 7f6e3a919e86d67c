"""The linear layer on oneDNN gives what ``F.linear`` gives, in every way that the library uses it."""

import pytest
import torch
from torch import library
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from jepa.models import linear as module
from jepa.models.layers import Block
from jepa.models.linear import Linear, linear

pytestmark = pytest.mark.skipif(not module.AVAILABLE, reason="this build of torch has no oneDNN")


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products take the way of the large ones."""
    monkeypatch.setattr(module, "LARGE", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what came to oneDNN."""
    seen = []

    def spy(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return linear(x, *rest)

    monkeypatch.setattr(module, "linear", spy)
    return seen


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_plain_layer(all_sizes: None, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(24, 40, bias=bias), torch.randn(3, 5, 24, requires_grad=True)
    wanted = [x, *layer.parameters()]
    plain = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-6)
    found = torch.autograd.grad(layer(x).square().sum(), wanted, create_graph=True)
    expected = torch.autograd.grad(plain.square().sum(), wanted, create_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # twice, as a planner asks that differentiates a gradient
    twice = [torch.autograd.grad(first[0].square().sum(), x)[0] for first in (found, expected)]
    torch.testing.assert_close(*twice, rtol=1e-5, atol=1e-4)


def test_the_operator_keeps_the_rules_of_operators() -> None:
    x, weight = torch.randn(3, 5, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    library.opcheck(linear, (x, weight, torch.randn(4, requires_grad=True)))
    library.opcheck(linear, (x, torch.randn(8, 4).t().requires_grad_(), None))


def test_heads_of_their_own_weights_go_together(all_sizes: None) -> None:
    torch.manual_seed(0)
    x, weights, biases = torch.randn(7, 2, 3, 8), torch.randn(7, 4, 8), torch.randn(7, 4)
    torch.testing.assert_close(torch.vmap(linear)(x, weights, biases), torch.vmap(F.linear)(x, weights, biases))
    for of in ((None, 0, None), (0, None, None)):
        parts = (x if of[0] == 0 else x[0], weights if of[1] == 0 else weights[0], biases[0])
        torch.testing.assert_close(torch.vmap(linear, of)(*parts), torch.vmap(F.linear, of)(*parts))
    last = torch.vmap(linear, (2, 0, None))(x[:, :, 0].movedim(0, 2), weights, None)
    torch.testing.assert_close(last, x[:, :, 0] @ weights.mT)


def test_only_large_products_in_float32_on_a_cpu_go_there(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(16, 32)
    monkeypatch.setattr(module, "LARGE", 10 * 16 * 32)
    layer(torch.randn(9, 16))
    layer.double()(torch.randn(10, 16, dtype=torch.float64))
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(10, 16)).dtype == torch.bfloat16
    layer.to("meta")(torch.empty(10, 16, device="meta"))
    assert calls == []
    Linear(16, 32)(torch.randn(10, 16))
    assert calls == [(10, 16)]


def test_a_transformer_block_takes_it_for_all_four_products(all_sizes: None, calls: list) -> None:
    Block(16, 2)(torch.randn(2, 5, 16))
    assert calls == [(2, 5, 16), (2, 5, 16), (2, 5, 16), (2, 5, 64)]


def test_work_is_counted(all_sizes: None) -> None:
    layer, x = Linear(16, 32), torch.randn(3, 5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 15 * 16 * 32


def test_a_block_compiles_in_one_piece(all_sizes: None) -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2), torch.randn(2, 5, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    found, expected = (
        torch.autograd.grad(way(x).square().sum(), list(block.parameters())) for way in (compiled, block)
    )
    torch.testing.assert_close(found, expected)
