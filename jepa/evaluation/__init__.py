"""Evaluation: named and versioned protocols, reports with floors and intervals, and paired comparisons."""

from jepa.evaluation.evaluate import Trajectories, evaluate, latency
from jepa.evaluation.floors import IdlePolicy, RandomPolicy
from jepa.evaluation.pairs import episode_pairs, recorded_pairs
from jepa.evaluation.protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    RecordedProtocol,
    find_protocol,
)
from jepa.evaluation.recorded import ActionReport
from jepa.evaluation.report import Comparison, Report, compare, table

__all__ = [
    "PROTOCOLS",
    "ActionReport",
    "Comparison",
    "EvaluationProtocol",
    "IdlePolicy",
    "RandomPolicy",
    "RecordedProtocol",
    "Report",
    "Trajectories",
    "compare",
    "episode_pairs",
    "evaluate",
    "find_protocol",
    "latency",
    "recorded_pairs",
    "table",
]
