"""SIGReg against a published implementation's numbers."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from jepa.objectives.sigreg import epps_pulley


def test_statistic_matches_the_published_one():
    """latents [T,B,D], directions [D,P], 17 knots on [0,3], mean over T and P."""
    fixture = load_file(Path(__file__).with_name("sigreg.safetensors"))
    ours = epps_pulley(fixture["latents"], fixture["directions"], knots=17)
    assert abs(ours.item() - fixture["statistic"].item()) < 1e-5
