"""Executable contracts: run these over your own encoder, world, planner or episode store.

Each ``check_*`` raises AssertionError with evidence at the first broken promise and returns None.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from jepa.schema import ActionSpec, Episodes, Plan, Planner, Problem, Sample, Task, World


def check_planner(planner: Planner, space: ActionSpec | None = None, horizon: int = 4, batch: int = 3) -> None:
    """A planner must keep to the bounds, earn its plan, draw only from its generator and treat environments alike.

    Args:
        planner: pure: the same problem, generator and warm start give the same plan
        space: the actions to plan; by default bounds, means and deviations that are neither zero nor one; where it has
            choices, every candidate must be one of them
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
            assert not space.choices or torch.equal(space.clip(action), action), "a candidate is no choice"
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
    mean = space.denormalise(torch.zeros(space.width))
    mean = mean if space.choices else space.clip(mean)  # of choices no plan, but what a guess costs
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
        action = space.clip(low + (high - low) * torch.rand(num, space.env_width, generator=generator))
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


def check_episodes(episodes: Episodes) -> None:
    """The promises of :class:`jepa.schema.Episodes`: every frame can be read alone, in any order, as the specs say."""
    specs = episodes.specs
    assert len(episodes) > 0, "a store without episodes"
    assert specs.action.block == 1, f"a store speaks in environment steps, its action block is {specs.action.block}"
    seen, wanted = specs.observation, {0, len(episodes) - 1}
    for number in wanted:
        length = episodes.length(number)
        whole = episodes.read(number, range(length))
        expected = {"video": (seen.channels, seen.height, seen.width), "action": (specs.action.env_width,)}
        expected |= {"proprio": (len(seen.proprio_mean),), "state": (len(seen.state_names),)}
        for name, shape in expected.items():
            value = getattr(whole, name)
            assert value is not None or shape == (0,), f"the specs promise {name} {shape}, episode {number} has none"
            found = None if value is None else tuple(value.shape)
            assert value is None or found == (length, *shape), f"{name} of episode {number} is {found}, not {shape}"
        assert whole.video.dtype == torch.uint8, f"video is {whole.video.dtype}, not uint8"
        assert whole.action is None or whole.action[:-1].isfinite().all(), f"episode {number}: NaN or infinite actions"
        _check_rows(episodes, number, whole)


def _check_rows(episodes: Episodes, number: int, whole: Sample) -> None:
    """Any frames in any order are those of the whole episode, and what is outside is refused."""
    length = episodes.length(number)
    for frames in ([length - 1], [0], [length // 2, 0, length - 1]):
        some = episodes.read(number, frames)
        for name, value in vars(whole).items():
            if isinstance(value, torch.Tensor):
                one, other = getattr(some, name).double(), value[frames].double()
                assert torch.allclose(one, other, equal_nan=True), f"{name} of frames {frames} differs"
    only = episodes.read(number, [0], ("video",))
    assert only.video is not None and only.action is None, "columns=('video',) also read the action"
    try:
        episodes.read(number, [length])
    except IndexError:
        return
    raise AssertionError(f"frame {length} of episode {number} was read, which has {length} frames")


def check_encoder(encoder: nn.Module, channels: int = 3, batch: int = 2, steps: int = 3) -> None:
    """An encoder keeps its shapes, repeats itself in evaluation mode, and mixes neither rows nor frames.

    Args:
        encoder: anything with ``dim``, ``grid`` and ``size`` that maps uint8 video to latents; left in evaluation mode
        channels: C, of the video
        batch: videos
        steps: frames of a video; no frame may change the latent of another
    """
    encoder.eval()
    draw = torch.Generator().manual_seed(0)
    side = encoder.size
    shape = (batch, steps, channels, *((side, side) if isinstance(side, int) else side))
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    kept = video.clone()
    wanted = (batch, steps, encoder.grid[0] * encoder.grid[1], encoder.dim)
    with torch.no_grad():
        z = encoder(video)
        assert tuple(z.shape) == wanted, f"latents are {tuple(z.shape)}, dim and grid say {wanted}"
        assert z.is_floating_point() and z.isfinite().all(), f"latents are {z.dtype}, finite: {z.isfinite().all()}"
        assert torch.equal(video, kept), "the encoder changed its input"
        assert torch.equal(encoder(video), z), "the same video gave other latents in evaluation mode"
        changed = video.clone()
        changed[:, -1] = 255 - changed[:, -1]
        moved = encoder(changed)
        _check_close(moved[:, :-1], z[:, :-1], "the last frame changed the latents of earlier frames")
        assert not torch.allclose(moved[:, -1], z[:, -1], atol=1e-4), "the latent does not depend on its frame"
        _check_close(encoder(video[1:]), z[1:], "a video changed the latents of another")
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        # weighted, since the sum of a layer norm's output is constant
        (encoder(video) * torch.randn(wanted, generator=draw)).sum().backward()
        blind = [k for k, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
        encoder.zero_grad(set_to_none=True)
        assert not blind, f"no gradient reaches {blind}"


def check_predictor(predictor: nn.Module, action_width: int, batch: int = 2, steps: int | None = None) -> None:
    """A predictor is causal in time, mixes no rows, and its cache is the model: ``begin`` and ``step`` give the
    numbers of ``forward`` for any history, any number of candidates, with and without gradients (to 1e-5, for latents
    of order one).

    Args:
        predictor: bound, with ``dim``, ``tokens`` and ``window``; left in evaluation mode
        action_width: A, that the predictor was bound to
        batch: rows
        steps: longest history; by default several times the window
    """
    predictor.eval()
    steps = steps or 3 * predictor.window + 2
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(batch, steps, predictor.tokens, predictor.dim, generator=draw)
    action = torch.randn(batch, steps, action_width, generator=draw)
    with torch.no_grad():
        p = predictor(z, action)
        assert p.shape == z.shape and p.isfinite().all(), f"forecasts are {tuple(p.shape)}, latents {tuple(z.shape)}"
        assert torch.equal(predictor(z, action), p), "the same latents gave other forecasts in evaluation mode"
        _check_close(predictor(z[1:], action[1:]), p[1:], "a row changed the forecasts of another")
        _check_causal(predictor, z, action, p)
    for history in {1, min(2, steps), min(predictor.window, steps), steps}:
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                _check_cache(predictor, z[:, :history], action[:, : history - 1], draw)
    _check_rollout_gradient(predictor, z[:, : min(2, predictor.window)], action[:, :4])


def _check_causal(predictor: nn.Module, z: Tensor, action: Tensor, p: Tensor) -> None:
    middle = z.shape[1] // 2
    for name, latent, act in (("latent", z.clone(), action), ("action", z, action.clone())):
        changed = latent if name == "latent" else act
        # not by a constant, which the layer norms of a residual stream take out
        changed[:, middle] += torch.linspace(-3, 3, changed.shape[-1])
        moved = predictor(latent, act)
        _check_close(moved[:, :middle], p[:, :middle], f"the {name} of step {middle} changed earlier forecasts")
        assert not torch.allclose(moved[:, middle], p[:, middle], atol=1e-4), f"forecasts do not depend on the {name}"


def _check_cache(predictor: nn.Module, z: Tensor, past: Tensor, draw: torch.Generator) -> None:
    """Candidates that share a cache, stepped beyond the window, against one full recompute per step and candidate."""
    copies, horizon = 3, predictor.window + 2
    plans = torch.randn(len(z) * copies, horizon, past.shape[-1], generator=draw)
    cache = predictor.begin(z, past).expand(copies)
    seen, done = z.repeat_interleave(copies, 0), past.repeat_interleave(copies, 0)
    for h in range(horizon):
        done = torch.cat([done, plans[:, h : h + 1]], 1)
        forecast, cache = predictor.step(cache, plans[:, h])
        full = predictor(seen, done)[:, -1]
        _check_close(forecast, full, f"the cache differs from a full recompute at step {h} after {z.shape[1]} frames")
        # fed with its own forecasts, so that the difference measured is that of a whole rollout
        seen = torch.cat([seen, full[:, None]], 1)


def _check_rollout_gradient(predictor: nn.Module, z: Tensor, action: Tensor) -> None:
    z, action = z.clone().requires_grad_(), action.clone().requires_grad_()
    cache = predictor.begin(z, action[:, : z.shape[1] - 1])
    for t in range(z.shape[1] - 1, action.shape[1]):
        forecast, cache = predictor.step(cache, action[:, t])
    (forecast * torch.linspace(-1, 2, forecast.shape[-1])).sum().backward()
    predictor.zero_grad(set_to_none=True)
    reached = action.grad.abs().sum((0, 2))
    # frames beyond the window still count, through the frames between
    assert (reached > 0).all(), f"the last forecast has gradients {reached.tolist()} for the actions before it"
    assert (z.grad.abs().sum((0, 2, 3)) > 0).all(), "no gradient reaches the latents that a rollout begins from"


def check_world(world: nn.Module, channels: int = 3, batch: int = 2, history: int = 3, horizon: int = 4) -> None:
    """A world model's ways to forecast agree, candidates do not meet, and raw actions are normalised exactly once.

    Args:
        world: bound; needs ``predict`` beside what :class:`jepa.schema.World` asks; left in evaluation mode
        channels: C, of the video
        batch: windows
        history: frames of context
        horizon: H, steps of a plan
    """
    assert isinstance(world, World), f"{type(world).__name__} has not the parts of jepa.schema.World; was it bound?"
    world.eval()
    space, seen, plans = world.specs.action, world.specs.observation, 3
    draw = torch.Generator().manual_seed(0)
    shape = (batch, history, channels, seen.height, seen.width)
    sample = Sample(video=torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw))
    past = space.denormalise(torch.randn(batch, history - 1, space.width, generator=draw))
    action = space.denormalise(torch.randn(batch, plans, horizon, space.width, generator=draw))
    kept = action.clone()
    with torch.no_grad():
        z = world.encode(sample)
        assert z.ndim == 4 and z.shape[:2] == (batch, history), f"latents are {tuple(z.shape)}, not [B,T,N,D]"
        forecast = world.rollout(z, action, past)
        wanted = (batch, plans, horizon, *z.shape[2:])
        assert tuple(forecast.shape) == wanted, f"forecasts are {tuple(forecast.shape)}, not [B,S,H,N,D] = {wanted}"
        assert torch.equal(action, kept), "rollout changed the plans that it was given"
        for s in range(plans):
            alone = world.rollout(z, action[:, s : s + 1], past)[:, 0]
            _check_close(alone, forecast[:, s], f"candidate {s} has another forecast when it is alone")
            _check_rollout(world, z, past, action[:, s], forecast[:, s])
        first = world.rollout(z[:, :1], action)
        _check_close(world.rollout(z[:, :1], action, past[:, :0]), first, "an empty past differs from none")
    _check_normalised_once(world, z, past, action, forecast)


def _check_rollout(world: nn.Module, z: Tensor, past: Tensor, plan: Tensor, forecast: Tensor) -> None:
    """A rollout is ``predict`` fed with its own forecasts."""
    done = past
    for h in range(plan.shape[1]):
        done = torch.cat([done, plan[:, h : h + 1]], 1)
        _check_close(world.predict(z, done)[:, -1], forecast[:, h], f"rollout and predict differ at step {h}")
        z = torch.cat([z, forecast[:, h : h + 1]], 1)


def _check_normalised_once(world: nn.Module, z: Tensor, past: Tensor, action: Tensor, forecast: Tensor) -> None:
    """In other units, with the statistics in those units, the same deeds have the same consequences."""
    specs, factor, offset = world.specs, 4.0, 0.5
    space = specs.action
    mean, std = (tuple(factor * value for value in values) for values in (space.mean, space.std))
    units = replace(space, mean=tuple(value + offset for value in mean), std=std)
    world.specs = replace(specs, action=units)
    try:
        with torch.no_grad():
            other = world.rollout(z, factor * action + offset, factor * past + offset)
    finally:
        world.specs = specs
    _check_close(other, forecast, "raw actions are not normalised exactly once", 1e-4)
    with torch.no_grad():
        shifted = world.rollout(z, action + torch.tensor(space.std * space.block), past)
    assert not torch.allclose(shifted, forecast, atol=1e-4), "the plan does not change the forecast"


def _check_close(mine: Tensor, theirs: Tensor, promise: str, tolerance: float = 1e-5) -> None:
    difference = (mine - theirs).abs().max().item()
    assert difference < tolerance, f"{promise}: the largest difference is {difference:.2e}"
