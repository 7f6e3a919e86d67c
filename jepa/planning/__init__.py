"""Planning in latent space: costs over imagined latents, planners that see only a cost, and the MPC policy."""

from jepa.planning.agent import MPC, check_specs
from jepa.planning.costs import ActionPenalty, Cost, GoalLatent, WeightedSum
from jepa.planning.gradient import GradientPlanner
from jepa.planning.knots import Knots, coloured_noise, shift
from jepa.planning.mppi import MPPI
from jepa.planning.sampling import CEM, ICEM, RandomShooting

__all__ = [
    "CEM",
    "ICEM",
    "MPC",
    "MPPI",
    "ActionPenalty",
    "Cost",
    "GoalLatent",
    "GradientPlanner",
    "Knots",
    "RandomShooting",
    "WeightedSum",
    "check_specs",
    "coloured_noise",
    "shift",
]
