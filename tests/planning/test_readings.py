"""Costs of what a head reads, against closed forms."""

import pytest
import torch

from jepa.errors import InputError
from jepa.models.heads import Head, load_head
from jepa.planning import Constraint, GoalLatent, Proprioception, Return
from jepa.runtime import call


class Linear(torch.nn.Module):
    """The first ``outputs`` channels of the mean token, doubled."""

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs = outputs

    def forward(self, z):
        assert z.shape[1] == 1 and z.ndim == 4, "a head reads single frames"
        return 2 * z[:, 0, :, : self.outputs].mean(1)


@pytest.fixture
def futures():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 5, 6, generator=generator, requires_grad=True)
    return z, torch.randn(2, 1, 5, 6, generator=generator), torch.randn(2, 3, 4, 2, generator=generator)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("reduce", ["last", "sum", "discounted"])
def test_proprioception_is_the_distance_of_what_is_read(futures, norm, reduce):
    z, goal, action = futures
    difference = 2 * (z[..., :3].mean(-2) - goal[:, :, :, :3].mean(-2).unsqueeze(1))
    each = (difference.square() if norm == "l2" else difference.abs()).mean(-1)
    steps = {"last": each[..., -1], "sum": each.sum(-1), "discounted": each @ 0.5 ** torch.arange(4.0)}
    cost = Proprioception(Linear(3), norm, reduce, discount=0.5)
    assert torch.allclose(cost(z, goal, action), steps[reduce], atol=1e-6)


def test_it_joins_the_goal_latent_and_carries_gradients(futures):
    z, goal, action = futures
    cost = GoalLatent() + 0.1 * Proprioception(Linear(2))
    assert torch.allclose(cost(*futures), GoalLatent()(*futures) + 0.1 * Proprioception(Linear(2))(*futures))
    (gradient,) = torch.autograd.grad(cost(z, goal, action).sum(), z)
    assert (gradient[:, :, -1].abs().sum((0, 1, 2)) > 0).all() and gradient[:, :, :-1].abs().max() == 0


def test_a_return_is_discounted_rewards_and_the_value_of_the_end(futures):
    z, goal, action = futures
    reward = 2 * z[..., 0].mean(-1)
    expected = -(reward @ 0.9 ** torch.arange(4.0))
    assert torch.allclose(Return(Linear(), None, 0.9)(z, goal, action), expected, atol=1e-6)
    both = Return(Linear(), Linear(), 0.9)(z, goal, action)
    assert torch.allclose(both, expected - 0.9**4 * reward[..., -1], atol=1e-6)
    assert torch.allclose(Return(value=Linear(), discount=0.9)(z, goal, action), -(0.9**4) * reward[..., -1], atol=1e-6)


def test_a_constraint_costs_nothing_inside_and_grows_outside(futures):
    z, goal, action = futures
    values = 2 * z[..., :2].mean(-2)
    inside = Constraint(Linear(2), low=-100.0, high=[100.0, 100.0])
    assert inside(z, goal, action).abs().max() == 0
    hinge = Constraint(Linear(2), low=[-0.1, -0.2], high=0.3, reduce="last")(z, goal, action)
    last = values[..., -1, :]
    expected = (torch.tensor([-0.1, -0.2]) - last).clamp_min(0) + (last - 0.3).clamp_min(0)
    assert torch.allclose(hinge, expected.sum(-1), atol=1e-6) and (hinge > 0).any()
    squared = Constraint(Linear(2), high=0.0, power=2.0)(z, goal, action)
    assert torch.allclose(squared, values.clamp_min(0).square().sum((-2, -1)), atol=1e-6)
    direct = Constraint(high=0.0)(z, goal, action)
    assert torch.allclose(direct, z.mean(-2).clamp_min(0).sum((-2, -1)), atol=1e-6)


def test_heads_of_the_wrong_kind_are_refused_in_one_line(futures):
    wrong = [
        lambda: Return(Linear(2))(*futures),
        lambda: Return(),
        lambda: Return(Linear(), discount=0.0),
        lambda: Proprioception(Linear(), norm="cosine"),
        lambda: Proprioception(torch.nn.Flatten(0))(*futures),
        lambda: Constraint(Linear()),
        lambda: Constraint(Linear(2), high=[1.0, 2.0, 3.0])(*futures),
        lambda: Constraint(Linear(), high=1.0, power=0.5),
        lambda: Head(0),
        lambda: Head(6)(futures[0][:, :, 0]),
        lambda: Head(6).fit(torch.zeros(5, 1, 1, 6), torch.zeros(5, 2)),
        lambda: Head(6).save("head.bin"),
    ]
    for make in wrong:
        with pytest.raises(InputError) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_head_learns_is_kept_and_plugs_into_yaml(tmp_path):
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(600, 1, 2, 4, generator=draw)
    y = 100 + 7 * z.mean((1, 2))[:, :1] - 3 * z.mean((1, 2))[:, 1:2]
    head = Head(4, hidden=0).fit(z[:500], y[:500], steps=300, lr=0.03)
    error = (head(z[500:]) - y[500:]).square().mean() / y[500:].var()
    assert error < 0.01, "a linear head reads what is linear"
    head.save(tmp_path / "reward.safetensors")
    kept = load_head(str(tmp_path / "reward.safetensors"))
    assert torch.equal(kept(z), head(z))
    for again in (head, kept):
        again.fit(z[:500], -y[:500], steps=300, lr=0.03)
        assert (again(z[500:]) + y[500:]).square().mean() / y[500:].var() < 0.01, "it may be fitted again"
    head = load_head(str(tmp_path / "reward.safetensors"))
    found = {"class_path": "jepa.models.heads.load_head", "init_args": {"path": str(tmp_path / "reward.safetensors")}}
    assert call(_cost_of, ["--reward", str(found).replace("'", '"')]) == pytest.approx(-head(z[:1]).item(), rel=1e-5)


def _cost_of(reward: torch.nn.Module) -> float:
    """The return of one step, for a head that a configuration names.

    Args:
        reward: a head.
    """
    z = torch.randn(600, 1, 2, 4, generator=torch.Generator().manual_seed(0))[:1]
    return Return(reward)(z.unsqueeze(1), z, z.new_zeros(1, 1, 1, 2)).item()


def test_files_that_hold_no_head_are_refused(tmp_path):
    with pytest.raises(InputError, match="no Head at"):
        load_head(str(tmp_path / "missing.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="damaged"):
        load_head(str(tmp_path / "broken.safetensors"))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other weights, not a Head"):
        load_head(str(tmp_path / "other.safetensors"))
    head = Head(4)
    head.options["layers"] = 3
    head.save(tmp_path / "newer.safetensors")
    with pytest.raises(InputError, match="newer.safetensors describes no Head of this version .*layers"):
        load_head(str(tmp_path / "newer.safetensors"))
