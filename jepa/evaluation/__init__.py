"""Evaluation: named and versioned protocols, reports with floors and intervals, and paired comparisons."""

from jepa.evaluation.evaluate import Trajectories, evaluate, latency
from jepa.evaluation.floors import IdlePolicy, RandomPolicy
from jepa.evaluation.protocols import PROTOCOLS, EvaluationProtocol, episode_pairs, find_protocol
from jepa.evaluation.report import Comparison, Report, compare, table

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "EvaluationProtocol",
    "IdlePolicy",
    "RandomPolicy",
    "Report",
    "Trajectories",
    "compare",
    "episode_pairs",
    "evaluate",
    "find_protocol",
    "latency",
    "table",
]
