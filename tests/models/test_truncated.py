"""Planning from fewer frames than were trained on: what is older is forgotten in every block."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import InputError
from jepa.models.predictors import ActionPredictor
from jepa.models.truncated import TruncatedPredictor

SIZES = {"dim": 8, "width": 16, "depth": 3, "heads": 2, "window": 3, "tokens": 2, "norm": False}


@pytest.fixture
def predictors() -> tuple[TruncatedPredictor, ActionPredictor]:
    """Both with the same weights, all of which matter."""
    torch.manual_seed(0)
    mine, plain = TruncatedPredictor(context=2, **SIZES), ActionPredictor(**SIZES)
    for predictor in (mine, plain):
        predictor.bind(4)
    for parameter in mine.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(mine.state_dict())
    return mine.eval(), plain.eval()


def rollout(predictor, z, past, plan):
    state, forecasts = predictor.begin(z, past), []
    for action in plan.unbind(1):
        forecast, state = predictor.step(state, action)
        forecasts.append(forecast)
    return torch.stack(forecasts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("history", [1, 2, 5])
def test_a_rollout_is_that_of_every_pair_of_frames_alone(predictors, history):
    mine, plain = predictors
    z, past, plan = torch.randn(3, history, 2, 8), torch.randn(3, history - 1, 4), torch.randn(3, 4, 4)
    latents, actions = [*z.unbind(1)], [*past.unbind(1)]
    for action in plan.unbind(1):
        actions.append(action)
        latents.append(plain(torch.stack(latents[-2:], 1), torch.stack(actions[-min(2, len(latents)) :], 1))[:, -1])
    torch.testing.assert_close(rollout(mine, z, past, plan), torch.stack(latents[history:], 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_would_remember_more(predictors):
    """The third step is the first for which something lies before the context."""
    mine, plain = predictors
    z, plan = torch.randn(3, 1, 2, 8), torch.randn(3, 4, 4)
    truncated, cached = (rollout(predictor, z, plan[:, :0], plan) for predictor in (mine, plain))
    torch.testing.assert_close(truncated[:, :2], cached[:, :2], atol=1e-5, rtol=1e-5)
    assert (truncated[:, 2] - cached[:, 2]).abs().max() > 1e-3


@torch.no_grad()
def test_candidates_share_a_past(predictors):
    mine, _ = predictors
    z, past, plan = torch.randn(2, 3, 2, 8), torch.randn(2, 2, 4), torch.randn(6, 4)
    together, _ = mine.step(mine.begin(z, past).expand(3), plan)
    alone, _ = mine.step(mine.begin(z[1:], past[1:]), plan[5:])
    torch.testing.assert_close(together[5:], alone, atol=1e-6, rtol=1e-6)


def test_training_sees_whole_windows(predictors):
    mine, plain = predictors
    z, action = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 4)
    assert torch.equal(mine(z, action), plain(z, action))


@pytest.mark.parametrize("context", [0, 4])
def test_a_context_lies_within_the_window(context):
    with pytest.raises(InputError, match="up to its window of 3"):
        TruncatedPredictor(context=context, **SIZES)
