"""JEPA world models: encode what you see, predict the latent of what you do not see, score the prediction."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# what a notebook needs, imported when it is first asked for: importing torch takes seconds
_HOMES = {
    "Sample": "jepa.schema",
    "Specs": "jepa.schema",
    "InputError": "jepa.errors",
    "WorldModel": "jepa.models.world",
    "Hdf5Episodes": "jepa.data.hdf5",
    "Clips": "jepa.data.clips",
    "CEM": "jepa.planning",
    "ICEM": "jepa.planning",
    "MPC": "jepa.planning",
    "GoalLatent": "jepa.planning",
    "RobotController": "jepa.tasks.robot",
    "FrameIndex": "jepa.retrieval",
    "load": "jepa.checkpoints",
    "make": "jepa.envs",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jepa' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
