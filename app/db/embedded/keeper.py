"""Keeps an embedded Postgres alive for as long as the service that started it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from app.db.embedded.cluster import EmbeddedPostgres
from app.db.embedded.errors import EmbeddedPostgresError
from app.telemetry.logs import get_logger

LOOK_EVERY_S = 0.5
# A server that dies more often is not helped by another start.
MOST_DEATHS, WITHIN_S = 10, 60.0

log = get_logger(__name__)


class Keeper:
    """Looks at the server's process, from `start` to `stop`, and starts it again when it has died.

    Args:
        server: started, and not stopped before this is.
        on_lost: called once, in the keeper's thread, when the server is gone for good; `failure` then says why.
    """

    def __init__(self, server: EmbeddedPostgres, on_lost: Callable[[], None]) -> None:
        self._server = server
        self._on_lost = on_lost
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-keeper", daemon=True)
        self.failure: EmbeddedPostgresError | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End. Blocks, so that no start is under way afterwards, for as long as one may take."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            if self._server.is_alive():
                continue
            try:
                self._start_again()
            except EmbeddedPostgresError as error:
                log.error("database_cannot_be_started", error=str(error), hint="the service ends")
                self.failure = error
                self._on_lost()
                return

    def _start_again(self) -> None:
        began = time.monotonic()
        log.error("database_died", url=self._server.url)
        if len(self._deaths) == MOST_DEATHS and began - self._deaths[0] < WITHIN_S:
            raise EmbeddedPostgresError(
                f"The embedded Postgres died more than {MOST_DEATHS} times within {WITHIN_S:g} s; its log is "
                f"{self._server.log_path}."
            )
        self._deaths.append(began)
        self._server.start_again()
        log.info("database_started", url=self._server.url, took_s=round(time.monotonic() - began, 3))
