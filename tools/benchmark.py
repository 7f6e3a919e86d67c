"""Ours against the published way, side by side in one process: seconds, ratios and their spread.

    python -m tools.benchmark step --threads=2 --out=runs/benchmarks/step.json
    python -m tools.benchmark transforms
    python -m tools.benchmark decode
    python -m tools.benchmark masks
    python -m tools.benchmark probes
    python -m tools.benchmark features
    python -m tools.benchmark plan
    python -m tools.benchmark anytime --world=runs/two_rooms_seed0/last.ckpt --pairs=30

The machine must be idle: what runs beside a measurement widens its interval, and moves it.
"""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from jepa.errors import InputError
from tools.benchmarks.anytime import anytime
from tools.benchmarks.features import features
from tools.benchmarks.masks import masks
from tools.benchmarks.plan import plan
from tools.benchmarks.probes import probes
from tools.benchmarks.step import step
from tools.benchmarks.video import decode, transforms


def main(args: list[str] | None = None) -> int:
    """Exit code 0, or 2 for wrong input."""
    try:
        ways = [step, transforms, decode, masks, features, probes, plan, anytime]
        told = auto_cli(ways, args=args, as_positional=False, description=__doc__)
    except InputError as error:
        sys.stderr.write(f"benchmark: {error}\n")
        return 2
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
