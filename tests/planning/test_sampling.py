"""Planners against closed forms, invariances, and the faults of published planners."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jepa.errors import InputError
from jepa.planning import CEM, ICEM, MPPI, GradientPlanner, RandomShooting, coloured_noise, shift
from jepa.schema import ActionSpec, Problem
from jepa.testing import check_planner

PLANNERS = {
    "cem": CEM(),
    "icem": ICEM(),
    "held": CEM(hold=3),
    "icem held": ICEM(hold=2, beta=1.0),
    "mppi": MPPI(),
    "mppi of elites": MPPI(elites=16, hold=2, beta=1.0, result="best"),
    "random": RandomShooting(),
    "gradient": GradientPlanner(),
    "gradient held": GradientPlanner(candidates=4, hold=2, beta=1.0),
}
KINDS = [CEM, ICEM, MPPI, RandomShooting, GradientPlanner]
SPEC = ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.2, 1.5), block=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_problem(space, horizon=3, batch=3, penalty=0.3):
    """s' = A s + B u per environment step, cost |s_t - goal|^2 summed + penalty |u|^2: (problem, optimal cost [B])."""
    draw = generator(7)
    a = torch.tensor([[1.0, 0.1], [-0.1, 0.95]], dtype=torch.float64)
    b = torch.tensor([[0.5, 0.1], [0.0, 0.4]], dtype=torch.float64)
    start, goal = torch.randn(2, batch, 2, generator=draw, dtype=torch.float64) * 0.5
    steps = horizon * space.block

    def residual(action):
        """[B,S,H,A] -> the vector whose squared norm is the cost, affine in the action."""
        u = action.double().reshape(*action.shape[:2], steps, 2)
        state, parts = start[:, None].expand(-1, action.shape[1], -1), []
        for t in range(steps):
            state = state @ a.T + u[:, :, t] @ b.T
            parts.append(state - goal[:, None])
        return torch.cat([*parts, (penalty**0.5 * u).flatten(2)], dim=-1)

    def cost(action):
        return residual(action).square().sum(-1).float()

    size = steps * 2
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).reshape(1, size + 1, horizon, -1)
    rows = residual(basis.expand(batch, -1, -1, -1))
    offset, matrix = rows[:, 0], (rows[:, 1:] - rows[:, :1]).transpose(1, 2)
    solution = torch.linalg.lstsq(matrix, -offset.unsqueeze(-1)).solution
    best = (matrix @ solution + offset.unsqueeze(-1)).square().sum((1, 2))
    assert (solution.abs() < 5).all()
    return Problem(cost, space, horizon, batch, generator=generator()), best.float()


@pytest.mark.parametrize(
    "planner",
    [
        CEM(512, 64, first_iterations=40, min_std=0.01, momentum=0.1),
        ICEM(512, 64, first_iterations=60, min_std=0.03, momentum=0.3, beta=0.5, decay=1.0),
        ICEM(512, 64, first_iterations=60, min_std=0.03, momentum=0.3, beta=0.5, decay=1.02, result="mean"),
        MPPI(1024, temperature=0.03, first_iterations=120, std=0.1, min_std=0.1, max_std=0.1),
        MPPI(512, 64, temperature=0.5, first_iterations=60, min_std=0.01, momentum=0.1),
        GradientPlanner(candidates=4, first_iterations=150),
    ],
    ids=["cem", "icem", "icem mean", "mppi of all", "mppi of elites", "gradient"],
)
@pytest.mark.parametrize("block", [1, 2])
def test_linear_dynamics_and_quadratic_cost_are_solved_within_one_percent(planner, block):
    space = ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.3, -1.0), (0.5, 2.0), block)
    problem, best = linear_problem(space, horizon=6 // block)
    plan = planner.plan(problem)
    assert (best > 0.01).all(), "a zero optimum would make one percent meaningless"
    assert (plan.cost <= 1.01 * best).all(), (plan.cost / best).tolist()
    assert (plan.cost >= best - 1e-4).all()


def test_random_shooting_comes_within_one_percent_where_draws_can_cover_the_space():
    problem, best = linear_problem(ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.3, -1.0), (0.5, 2.0)), horizon=1)
    plan = RandomShooting(20000).plan(problem)
    assert (best > 0.01).all() and (plan.cost <= 1.01 * best).all(), (plan.cost / best).tolist()


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_contract(planner):
    check_planner(planner)


@pytest.mark.parametrize(
    "planner",
    [
        CEM(first_iterations=50, min_std=0.5),
        ICEM(first_iterations=50, min_std=0.5),
        MPPI(first_iterations=50, min_std=0.5),
        RandomShooting(4096, std=6.0),
        GradientPlanner(first_iterations=120),
    ],
    ids=["cem", "icem", "mppi", "random", "gradient"],
)
def test_normalised_candidates_are_clipped_at_the_raw_bounds(planner):
    """With a standard deviation of 0.2, clamping z-scores at +-1 would leave only a fifth of the raw range."""
    space = ActionSpec((-1.0,), (1.0,), (0.0,), (0.2,))
    plan = planner.plan(Problem(lambda a: -a.sum((2, 3)), space, 4, 2, generator=generator()))
    assert (plan.action > 0.9).all() and (plan.action <= 1.0).all()
    space = ActionSpec((-1.0,), (1.0,), (0.5,), (0.2,))
    plan = planner.plan(Problem(lambda a: a.sum((2, 3)), space, 4, 2, generator=generator()))
    assert (plan.action < -0.9).all() and (plan.action >= -1.0).all()


@pytest.mark.parametrize("hold", [1, 2, 3, 4, 6, 9, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_held_on_the_environment_time_axis(kind, hold):
    problem, _ = linear_problem(SPEC)
    seen = []
    spying = Problem(lambda a: seen.append(a) or problem.cost(a), SPEC, 3, 3, generator=generator())
    kind(hold=hold).plan(spying)
    for action in seen:
        steps = action.reshape(*action.shape[:2], 9, 2)
        for start in range(0, 9, hold):
            part = steps[:, :, start : start + hold]
            assert torch.equal(part, part[:, :, :1].expand_as(part))
    if hold == 1:
        assert (steps[:, 1:].diff(dim=2).abs() > 0).any(-1).all(), "every environment step has its own action"


@pytest.mark.parametrize("kind", [CEM, ICEM, MPPI, GradientPlanner])
def test_first_candidate_is_the_mean(kind):
    """The first candidate of a warm start is the warm start itself, held as it was."""
    problem, _ = linear_problem(SPEC)
    warm = torch.rand(3, 3, 2, generator=generator(3)).repeat(1, 1, 3) * 0.5
    seen = []
    kind(hold=3).plan(Problem(lambda a: seen.append(a) or problem.cost(a), SPEC, 3, 3, generator=generator()), warm)
    assert torch.allclose(seen[0][:, 0], warm, atol=1e-6)


@pytest.mark.parametrize("kind", [CEM, ICEM])
def test_a_good_warm_start_is_not_lost(kind):
    problem, best = linear_problem(ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.0,) * 2, (1.0,) * 2), horizon=6)
    good = kind(256, 32, first_iterations=30, min_std=0.03).plan(problem)
    again = kind(32, 8, iterations=1, result="best").plan(problem, good.action)
    assert (again.cost <= good.cost * (1 + 1e-4)).all()
    cold = kind(32, 8, first_iterations=1, result="best").plan(problem)
    assert (cold.cost > good.cost).all()


def test_icem_hands_its_elites_to_the_next_decision():
    problem, _ = linear_problem(SPEC)
    seen = []
    spying = Problem(lambda a: seen.append(a) or problem.cost(a), SPEC, 3, 3, generator=generator())
    plan = ICEM(keep=4).plan(spying)
    assert plan.trace["elites"].shape == (3, 4, 3, 6)
    seen.clear()
    warm = shift(torch.cat([plan.action.unsqueeze(1), plan.trace["elites"]], dim=1), 1)
    ICEM(keep=4, iterations=2).plan(spying, warm)
    assert torch.allclose(seen[0][:, :5], warm, atol=1e-5)
    kept = problem.cost(seen[0]).topk(4, dim=1, largest=False).indices
    assert torch.allclose(seen[1][:, 1:5], seen[0].gather(1, kept[:, :, None, None].expand(-1, -1, 3, 6)), atol=1e-5)


def test_icem_uses_fewer_candidates_in_every_iteration():
    problem, _ = linear_problem(SPEC)
    sizes = []
    spying = Problem(lambda a: sizes.append(a.shape[1]) or problem.cost(a), SPEC, 3, 3, generator=generator())
    ICEM(100, 10, first_iterations=9, decay=1.25).plan(spying)
    assert sizes == [100, 80, 64, 51, 40, 32, 26, 20, 20]


def test_icem_returns_the_best_plan_it_saw():
    problem, _ = linear_problem(SPEC)
    costs = []
    spying = Problem(lambda a: costs.append(problem.cost(a)) or costs[-1], SPEC, 3, 3, generator=generator())
    plan = ICEM().plan(spying)
    assert torch.equal(plan.cost, torch.cat(costs, dim=1).min(1).values)


@pytest.mark.parametrize("planner", [CEM(iterations=3), ICEM(iterations=3, result="best"), MPPI(iterations=3)])
def test_all_environments_are_one_call_per_iteration(planner):
    problem, _ = linear_problem(SPEC, batch=7)
    calls = []
    spying = Problem(lambda a: calls.append(len(a)) or problem.cost(a), SPEC, 3, 7, generator=generator())
    planner.plan(spying, torch.zeros(7, 3, 6))
    assert set(calls) == {7} and len(calls) <= 4


class NoSync(TorchDispatchMode):
    """Raises where a tensor's value is read by the host, which would wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(function), f"host reads: {function}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_no_value_is_read_by_the_host(planner):
    problem = Problem(lambda a: a.square().sum((2, 3)), SPEC, 3, 2, generator=generator())
    with NoSync():
        planner.plan(problem)
        with pytest.raises(AssertionError, match="host reads"):
            torch.ones(1).item()


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_costs_that_are_not_numbers_never_win(planner):
    def cost(action):
        value = action.square().sum((2, 3))
        return torch.where(action[..., 0].mean(-1) > 0, value, torch.nan)

    space = ActionSpec((-1.0,), (1.0,), (0.1,), (0.5,))
    plan = planner.plan(Problem(cost, space, 4, 2, generator=generator()))
    assert plan.cost.isfinite().all() and plan.action.isfinite().all()


@pytest.mark.parametrize("steps,expected", [(0, [1, 2, 3, 4]), (1, [2, 3, 4, 4]), (3, [4, 4, 4, 4]), (9, [4, 4, 4, 4])])
def test_shift_is_aligned_in_time(steps, expected):
    plan = torch.tensor([1, 2, 3, 4]).reshape(1, 4, 1).repeat(2, 1, 3)
    assert shift(plan, steps)[1, :, 2].tolist() == expected
    assert shift(plan[:, None].expand(-1, 5, -1, -1), steps).shape == (2, 5, 4, 3)


def test_shift_refuses_to_go_back():
    with pytest.raises(ValueError, match="was given -1"):
        shift(torch.zeros(1, 2, 1), -1)


def test_coloured_noise_has_unit_variance_and_the_spectrum_that_was_asked_for():
    noise = coloured_noise((20000, 16), 2.0, generator())
    assert torch.allclose(noise.std(0), torch.ones(16), atol=0.03)
    power = torch.fft.rfft(noise).abs().square().mean(0)[1:8]  # the Nyquist term is real and so has the same power
    frequency = torch.arange(1, 8)
    slope = power.log().diff() / frequency.log().diff()
    assert torch.allclose(slope, torch.full((6,), -2.0), atol=0.15)
    white = coloured_noise((4, 16), 0.0, generator())
    assert torch.equal(white, torch.randn(4, 16, generator=generator()))


def test_coloured_noise_keeps_bold_and_careful_sequences():
    """Scaling every sequence to unit size, as a published iCEM does, would make these all one."""
    size = coloured_noise((2000, 5), 2.0, generator()).square().mean(1).sqrt()
    assert size.quantile(0.1) < 0.6 and size.quantile(0.9) > 1.3
    assert coloured_noise((10, 1), 2.0, generator()).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CEM(elites=1),
        lambda: CEM(candidates=8, elites=9),
        lambda: CEM(iterations=0),
        lambda: CEM(hold=0),
        lambda: CEM(std=0.0),
        lambda: CEM(momentum=1.0),
        lambda: CEM(result="median"),
        lambda: ICEM(keep=20),
        lambda: ICEM(decay=0.5),
        lambda: RandomShooting(candidates=1),
        lambda: RandomShooting(std=0.0),
        lambda: CEM().plan(Problem(lambda a: a.sum((2, 3)), ActionSpec((-1.0,), (1.0,), (0.0,), (0.0,)), 2, 1)),
    ],
)
def test_wrong_settings_are_refused_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
