"""The numbers at the top of the page, taken from the report's own rows."""

from __future__ import annotations

from dataclasses import dataclass

from tools.report.content import Report, Score


@dataclass(frozen=True)
class Headline:
    """None where nothing was measured."""

    success: Score | None
    episodes: int | None
    floor: float | None  # success of the first floor policy
    floor_name: str
    probe: Score | None
    untrained: float | None  # the same probe on the untrained encoder
    probe_name: str
    probe_metric: str
    p50_ms: float | None
    p95_ms: float | None
    seconds: float | None
    training_seconds: float | None
    frames_per_second: float | None

    @classmethod
    def of(cls, report: Report) -> Headline:
        """The first planning row that is no floor, the first that is, and the first probe."""
        policy = next((row for row in report.planning if not row.floor), None)
        floor = next((row for row in report.planning if row.floor), None)
        probe = report.probes[0] if report.probes else None
        stages = report.stages
        return cls(
            success=policy.success if policy else None,
            episodes=policy.episodes if policy else None,
            floor=floor.success.value if floor else None,
            floor_name=floor.policy if floor else "",
            probe=probe.trained if probe else None,
            untrained=probe.untrained.value if probe and probe.untrained else None,
            probe_name=probe.name if probe else "",
            probe_metric=probe.metric if probe else "",
            p50_ms=policy.p50_ms if policy else None,
            p95_ms=policy.p95_ms if policy else None,
            seconds=sum(stage.seconds for stage in stages) if stages else None,
            training_seconds=sum(stage.seconds for stage in stages if stage.training) if stages else None,
            frames_per_second=report.frames_per_second,
        )
