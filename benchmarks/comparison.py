"""Two services under the same load in turn, burst by burst, so that what else the machine does meets both alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import limit_s
from benchmarks.load import LoadDriver
from benchmarks.server import CannotStart, Stage
from benchmarks.workloads import Workload

_BURST = 100  # about a fifth of a second of CPU: the system counts it in steps of 10 ms
_SETTLING = 10  # runs before each burst, which do not count


@dataclass(frozen=True, slots=True)
class Comparison:
    """CPU in ms a run of each burst, without telemetry and with it."""

    name: str
    without: Sequence[float]
    with_it: Sequence[float]

    def text(self, what: str) -> str:
        """A line: means, and how much more it is by the mean, the median and the calmest quarter of the bursts."""
        measures = (statistics.fmean, statistics.median, _calm)
        mean, median, calm = (f"{measure(self.with_it) / measure(self.without) - 1:+.1%}" for measure in measures)
        before, after = statistics.fmean(self.without), statistics.fmean(self.with_it)
        return (
            f"{self.name}: {before:.2f} ms CPU/run without, {after:.2f} ms with {what}: "
            f"{mean} by the mean, {median} by the median, {calm} by the calmest quarter"
        )


async def compare(without: Stage, with_it: Stage, workload: Workload, runs: int) -> Comparison:
    """Send `runs` to each.

    Raises:
        CannotStart: a run went wrong.
    """
    cpu: dict[str, list[float]] = {without.url: [], with_it.url: []}
    for stage in (without, with_it):
        await _sent(stage, workload, workload.warm_up)
    for _ in range(max(1, runs // _BURST)):
        for stage in random.sample((without, with_it), 2):
            await _sent(stage, workload, _SETTLING)
            before = stage.service.cpu_s()
            await _sent(stage, workload, _BURST)
            cpu[stage.url].append(1000 * (stage.service.cpu_s() - before) / _BURST)
    return Comparison(workload.name, cpu[without.url], cpu[with_it.url])


async def _sent(stage: Stage, workload: Workload, runs: int) -> None:
    outcome = await LoadDriver(stage.url).drive(workload, runs, limit_s=limit_s(runs))
    if outcome.errors:
        raise CannotStart(f"a run went wrong: {outcome.errors[0]}")


def _calm(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 4]
