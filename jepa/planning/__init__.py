"""Planning in latent space: costs over imagined latents, sampling planners that see only a cost, and the MPC policy."""

from jepa.planning.agent import MPC, check_specs
from jepa.planning.costs import ActionPenalty, Cost, GoalLatent, WeightedSum
from jepa.planning.knots import Knots, coloured_noise, shift
from jepa.planning.sampling import CEM, ICEM

__all__ = [
    "CEM",
    "ICEM",
    "MPC",
    "ActionPenalty",
    "Cost",
    "GoalLatent",
    "Knots",
    "WeightedSum",
    "check_specs",
    "coloured_noise",
    "shift",
]
