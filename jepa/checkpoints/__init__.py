"""Models on disk: written whole or not at all, read without running anything that the file brings."""

from jepa.checkpoints.load import load

__all__ = ["load"]
