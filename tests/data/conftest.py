from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jepa.data.hdf5 import Hdf5Episodes

sys.path.insert(0, str(Path(__file__).parent))
from coded_episodes import write  # noqa: E402


@pytest.fixture(params=[False, True], ids=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Hdf5Episodes:
    """Episodes of 12, 5, 30 and 12 frames that tell their own place."""
    return Hdf5Episodes(write(tmp_path / "coded.h5", [12, 5, 30, 12]), memory=request.param)
