"""The figures of one workload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import LoadDriver, Outcome
from benchmarks.measure import PeakMemory, own_cpu_s
from benchmarks.server import Stage
from benchmarks.workloads import Workload

_LIMIT_S = 60.0
_LIMIT_S_PER_RUN = 0.25
_ERRORS_KEPT = 5


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles | None:
        """By nearest rank; None of nothing."""
        if not seconds:
            return None
        ranked = sorted(seconds)
        p50, p95, p99 = (round(1000 * ranked[math.ceil(share * len(ranked)) - 1], 2) for share in (0.50, 0.95, 0.99))
        return cls(p50, p95, p99)


@dataclass(frozen=True, slots=True)
class CpuPerRun:
    """Milliseconds of CPU for each run that was right. Only the service's is ours."""

    service: float
    database: float
    model_server: float
    load_driver: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a workload cost.

    Args:
        runs: how many were right.
        error_count: how many were not.
        errors: the first few of what went wrong.
        peak_rss_mib: of the service's whole process tree, in MiB.
    """

    name: str
    runs: int
    concurrency: int
    cpu_ms_per_run: CpuPerRun | None
    runs_per_s: float
    latency_ms: Percentiles | None
    first_token_ms: Percentiles | None
    peak_rss_mib: float
    error_count: int
    errors: list[str]


async def measure(stage: Stage, workload: Workload, runs: int) -> Figures:
    """Warm the service up, then send `runs` of a workload and see what they cost."""
    driver = LoadDriver(stage.url)
    warm_up = await driver.drive(workload, workload.warm_up, limit_s=_LIMIT_S)
    if not warm_up.latencies_s:
        return _figures(workload, warm_up, None, 0.0)
    async with PeakMemory(stage.service) as memory:
        before = _cpu_s(stage)
        outcome = await driver.drive(workload, runs, limit_s=limit_s(runs))
        after = _cpu_s(stage)
    done = len(outcome.latencies_s)
    per_run = [round(1000 * (end - start) / done, 3) for start, end in zip(before, after, strict=True)] if done else []
    cpu = CpuPerRun(*per_run) if per_run else None
    return _figures(workload, outcome, cpu, memory.peak_bytes / 2**20)


def limit_s(runs: int) -> float:
    """The longest that so many runs may take."""
    return _LIMIT_S + _LIMIT_S_PER_RUN * runs


def _cpu_s(stage: Stage) -> tuple[float, float, float, float]:
    return (stage.service.cpu_s(), stage.database.cpu_s(), stage.model_server.cpu_s(), own_cpu_s())


def _figures(workload: Workload, outcome: Outcome, cpu: CpuPerRun | None, peak_rss_mib: float) -> Figures:
    done = len(outcome.latencies_s)
    return Figures(
        name=workload.name,
        runs=done,
        concurrency=workload.concurrency,
        cpu_ms_per_run=cpu,
        runs_per_s=round(done / outcome.elapsed_s, 1) if outcome.elapsed_s else 0.0,
        latency_ms=Percentiles.of(outcome.latencies_s),
        first_token_ms=Percentiles.of(outcome.first_tokens_s),
        peak_rss_mib=round(peak_rss_mib, 1),
        error_count=len(outcome.errors),
        errors=outcome.errors[:_ERRORS_KEPT],
    )
