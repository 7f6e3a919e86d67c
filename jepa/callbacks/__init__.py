"""Lightning callbacks that watch a training: collapse, throughput, loss spikes."""

from jepa.callbacks.collapse import CollapseWatch, collapse_signals
from jepa.callbacks.spikes import LossSpikeGuard
from jepa.callbacks.throughput import Throughput

__all__ = ["CollapseWatch", "LossSpikeGuard", "Throughput", "collapse_signals"]
