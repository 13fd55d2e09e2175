"""Measuring the steps of runs."""

from __future__ import annotations

from collections.abc import Callable

from app.engine.actions import Action, Finish
from app.engine.moves import CallMove
from app.engine.status import RunStatus
from app.engine.transition import Transition
from app.telemetry.metrics import Metrics
from app.worker.driver import DriverPorts, RunDriver
from app.worker.start import Start


class MeteredDriver(RunDriver):
    """A `RunDriver` that counts the steps that it closes, and how long each took: from the one before, or from the
    attempt's beginning."""

    def __init__(
        self,
        metrics: Metrics,
        ports: DriverPorts,
        start: Start,
        *,
        on_lost: Callable[[], None],
        on_progress: Callable[[], None],
    ) -> None:
        super().__init__(ports, start, on_lost=on_lost, on_progress=on_progress)
        self._metrics = metrics
        self._step_began_at = self._began_at

    async def _carry_out(self, transition_with: Callable[[tuple[CallMove, ...]], Transition]) -> Action | RunStatus:
        step = self._state.step
        action = await super()._carry_out(transition_with)
        if self._state.step > step or isinstance(action, Finish):
            now = self._ports.clock()
            self._metrics.step_ended(now - self._step_began_at)
            self._step_began_at = now
        return action
