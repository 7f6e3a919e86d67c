"""What the benchmark compares, and how it measures: ``python -m tools.benchmark --help``."""
