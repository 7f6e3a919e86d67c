"""Planning in latent space: costs over imagined latents, planners that see only a cost, and the MPC policy."""

from jepa.planning.agent import MPC
from jepa.planning.categorical import CategoricalCEM
from jepa.planning.collocation import Collocation
from jepa.planning.costs import ActionPenalty, Cost, GoalLatent, WeightedSum
from jepa.planning.deadline import TimeLimit
from jepa.planning.gradient import GradientPlanner
from jepa.planning.gradient_free import Nevergrad
from jepa.planning.imagining import imagined, wants_proprio
from jepa.planning.knots import Knots, coloured_noise, shift
from jepa.planning.match import check_history, check_members, check_specs
from jepa.planning.mcts import GoalGame, TreeSearch
from jepa.planning.mppi import MPPI
from jepa.planning.readings import Constraint, Proprioception, Return
from jepa.planning.risk import Disagreement, Risk
from jepa.planning.sampling import CEM, ICEM, RandomShooting

__all__ = [
    "CEM",
    "ICEM",
    "MPC",
    "MPPI",
    "ActionPenalty",
    "CategoricalCEM",
    "Collocation",
    "Constraint",
    "Cost",
    "Disagreement",
    "GoalGame",
    "GoalLatent",
    "GradientPlanner",
    "Knots",
    "Nevergrad",
    "Proprioception",
    "RandomShooting",
    "Return",
    "Risk",
    "TimeLimit",
    "TreeSearch",
    "WeightedSum",
    "check_history",
    "check_members",
    "check_specs",
    "coloured_noise",
    "imagined",
    "shift",
    "wants_proprio",
]
