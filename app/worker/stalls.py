"""Notices runs that make no progress, and says so once each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.engine.state import RunState
from app.telemetry.logs import get_logger
from app.worker.driver import RunDriver

log = get_logger(__name__)


@dataclass(slots=True)
class _Standstill:
    """Where a run was found, when first, and whether it was reported since."""

    state: RunState
    write_no: int
    since: float
    reported: bool = False

    def is_over(self, driver: RunDriver) -> bool:
        # The report is a write too.
        return driver.state is not self.state or driver.write_no > self.write_no + self.reported


class Stalls:
    """
    Args:
        drivers: those of the runs under way, by run.
        deadline_s: seconds without a commit, be it of deltas or of a tool's progress, after which a run is reported.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        drivers: Callable[[], Mapping[str, RunDriver]],
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drivers = drivers
        self._deadline_s = deadline_s
        self._clock = clock
        self._found: dict[str, _Standstill] = {}

    @property
    def count(self) -> int:
        """The runs that make no progress now."""
        return sum(found.reported for found in self._found.values())

    async def look(self) -> None:
        """Look at all runs under way once."""
        now, drivers = self._clock(), self._drivers()
        known, self._found = self._found, {}
        for run_id, driver in drivers.items():
            found = known.get(run_id)
            if found is None or found.is_over(driver):
                found = _Standstill(driver.state, driver.write_no, now)
            elif not found.reported and now - found.since >= self._deadline_s:
                found.reported = True
                self._report(driver, now - found.since)
            self._found[run_id] = found

    def _report(self, driver: RunDriver, seconds: float) -> None:
        run = driver.run
        doing = driver.doing
        log.warning(
            "run_stalled",
            run_id=run.run_id,
            agent=run.agent_name,
            step=driver.state.step,
            doing=doing,
            seconds=round(seconds, 1),
        )
        driver.note_stall(doing, seconds)
