"""Executable contracts: run these over your own encoder, world, planner or episode store.

Each ``check_*`` raises AssertionError with evidence at the first broken promise and returns None.
"""

from __future__ import annotations

import torch

from jepa.schema import ActionSpec, Plan, Planner, Problem, Sample, Task


def check_planner(planner: Planner, space: ActionSpec | None = None, horizon: int = 4, batch: int = 3) -> None:
    """A planner must keep to the bounds, earn its plan, draw only from its generator and treat environments alike.

    Args:
        planner: pure: the same problem, generator and warm start give the same plan
        space: the actions to plan; by default bounds, means and deviations that are neither zero nor one
        horizon: model steps
        batch: environments
    """
    space = space or ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.2, 1.5), block=3)
    low, high = (torch.tensor(bound * space.block) for bound in (space.low, space.high))
    draw = torch.Generator().manual_seed(1)
    centre = space.clip(space.denormalise(torch.randn(batch, 1, horizon, space.width, generator=draw)))

    def plan(order: list[int], warm: torch.Tensor | None = None, seed: int = 0) -> Plan:
        def cost(action: torch.Tensor) -> torch.Tensor:
            assert action.shape[0] == len(order) and action.shape[2:] == (horizon, space.width), (
                f"the cost was asked for {tuple(action.shape)}, not [B,S,H,A]"
            )
            assert ((action >= low) & (action <= high)).all(), "a candidate leaves the raw bounds"
            return (space.normalise(action) - space.normalise(centre[order])).square().mean((2, 3))

        generator = torch.Generator().manual_seed(seed)
        problem = Problem(cost, space, horizon, len(order), "cpu", generator)
        found = planner.plan(problem, warm)
        assert found.action.shape == (len(order), horizon, space.width), f"plan of shape {tuple(found.action.shape)}"
        believed, real = found.cost, cost(found.action.unsqueeze(1))[:, 0]
        assert torch.allclose(believed, real, atol=1e-5), f"the plan costs {real.tolist()}, not {believed.tolist()}"
        return found

    order = list(range(batch))
    before = torch.get_rng_state()
    first = plan(order)
    assert torch.equal(torch.get_rng_state(), before), "the planner drew from the global generator"
    assert torch.equal(plan(order).action, first.action), "the same generator state gave another plan"
    turned = plan(order[::-1]).action.flip(0)
    assert torch.allclose(turned, first.action, atol=1e-5), "the order of the environments changed a plan"
    mean = space.clip(space.denormalise(torch.zeros(space.width)))
    idle = (space.normalise(mean) - space.normalise(centre)).square().mean((1, 2, 3))
    assert (first.cost < idle).all(), f"plans cost {first.cost.tolist()}, the mean action {idle.tolist()}"
    warm = centre[:, 0].clone()
    plan(order, warm)
    assert torch.equal(warm, centre[:, 0]), "the planner changed the warm start that it was given"


def check_task(task: Task, steps: int = 5) -> None:
    """A task keeps the shapes and promises of :class:`jepa.schema.Task`. Leaves it reset.

    Args:
        task: the environments; they are reset and stepped.
        steps: environment steps to take.
    """
    num, space, seen = task.num, task.specs.action, task.specs.observation
    assert space.block == 1, f"a task speaks in single environment actions, its block is {space.block}"
    first = task.reset(seed=3)
    _check_present(first, task)
    assert first.goal is not None, "reset returned no goal"
    _check_present(first.goal, task)
    again = task.reset(seed=3)
    assert torch.equal(first.video, again.video) and torch.equal(first.state, again.state), "one seed, two starts"
    assert torch.equal(first.goal.video, again.goal.video), "one seed, two goals"
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.tensor(bound).clamp(-1e3, 1e3) for bound in (space.low, space.high))
    for _ in range(steps):
        action = low + (high - low) * torch.rand(num, space.env_width, generator=generator)
        outcome = task.step(action)
        _check_present(outcome.sample, task)
        assert outcome.sample.goal is not None and torch.equal(outcome.sample.goal.video, first.goal.video)
        for name, dtype in (("reward", torch.float32), ("terminated", torch.bool), ("success", torch.bool)):
            value = getattr(outcome, name)
            assert value.shape == (num,) and value.dtype == dtype, f"{name} is {value.dtype} {tuple(value.shape)}"
    reached = task.success(first.goal.state[:, 0], first.goal.state[:, 0])
    assert not seen.state_names or bool(reached.all()), f"the goal state does not reach the goal: {reached}"
    if num > 1:
        before = outcome.sample
        mask = torch.arange(num) == 0
        after = task.reset(seed=3, mask=mask)
        assert torch.equal(after.video[0], first.video[0]), "a masked reset did not repeat its seed"
        assert torch.equal(after.video[1:], before.video[1:]), "a masked reset touched environments beyond its mask"
    task.reset(seed=3)


def _check_present(sample: Sample, task: Task) -> None:
    seen, num = task.specs.observation, task.num
    wanted = (num, 1, seen.channels, seen.height, seen.width)
    assert sample.video is not None and sample.video.dtype == torch.uint8, "video wants uint8"
    assert tuple(sample.video.shape) == wanted, f"video is {tuple(sample.video.shape)}, specs say {wanted}"
    for name, width in (("state", len(seen.state_names)), ("proprio", len(seen.proprio_mean))):
        value = getattr(sample, name)
        if width == 0 and value is None:
            continue
        assert value is not None, f"specs promise {name} of width {width}, the sample has none"
        assert value.dtype == torch.float32 and tuple(value.shape) == (num, 1, width), f"{name}: {tuple(value.shape)}"
