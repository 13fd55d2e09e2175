"""Tasks that a replica cannot do its work without, and which of them have ended though nobody asked them to."""

from __future__ import annotations

import asyncio

from app.telemetry.logs import get_logger

log = get_logger(__name__)


class Watch:
    """Knows what is over. A loop that ended was a defect, so it is not begun again: the process should be."""

    def __init__(self) -> None:
        self._over: dict[str, None] = {}  # in the order in which they ended
        self._stopping = False

    def over(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Take a task under watch; it is the caller's as before."""
        task.add_done_callback(self._ended)
        return task

    def lost(self, name: str, error: object = None) -> None:
        """What is called `name` does not do its work any more."""
        if name not in self._over and not self._stopping:
            self._over[name] = None
            log.error("background_task_ended", task=name, error=repr(error), hint="restart this replica")

    def stop(self) -> None:
        """From now on tasks end because they are told to."""
        self._stopping = True

    @property
    def problem(self) -> str | None:
        """For people: what is over; None if nothing is."""
        if not self._over:
            return None
        names = ", ".join(f"'{name}'" for name in self._over)
        return f"the background work {names} of this replica has ended; restart it"

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.lost(task.get_name(), None if task.cancelled() else task.exception())
