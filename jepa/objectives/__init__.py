"""Terms of the training loss. Each one sees a :class:`jepa.schema.Prediction` and nothing else."""

from jepa.objectives.base import Objective
from jepa.objectives.context import ContextRegression
from jepa.objectives.inverse import InverseDynamics
from jepa.objectives.prediction import Regression
from jepa.objectives.sigreg import SIGReg
from jepa.objectives.vicreg import Covariance, TemporalSimilarity, Variance

__all__ = [
    "ContextRegression",
    "Covariance",
    "InverseDynamics",
    "Objective",
    "Regression",
    "SIGReg",
    "TemporalSimilarity",
    "Variance",
]
