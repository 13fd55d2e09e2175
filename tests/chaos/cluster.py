"""Replicas on one database that are killed, stopped, and started again."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.acceptance.conftest import Serve
from tests.acceptance.service import Service
from tests.chaos.gauge import Gauge

LEASE_S = 2


class Cluster:
    """
    Args:
        environment: of every replica; `start` may change it for one.

    Attributes:
        replicas: those that live, oldest first.
    """

    def __init__(self, chaos: Gauge, serve: Serve, environment: dict[str, str], database_url: str) -> None:
        self._chaos = chaos
        self._serve = serve
        self._environment = {"LEASE_S": str(LEASE_S), "DATABASE_URL": database_url, **environment}
        self.database_url = database_url
        self.replicas: list[Service] = []

    async def start(self, count: int = 1, **settings: str) -> list[Service]:
        """Start replicas at once, and wait until all of them take work. The test's own tasks go on meanwhile."""
        started = [self._serve({**self._environment, **settings}) for _ in range(count)]
        await asyncio.gather(*(asyncio.to_thread(service.ready) for service in started))
        self.replicas += started
        return started

    async def kill(self, service: Service) -> None:
        """SIGKILL, and wait until it is gone."""
        self.replicas.remove(service)
        self._chaos.kills += 1
        await asyncio.to_thread(service.kill)

    def leave(self, service: Service) -> None:
        """SIGTERM; callers turn to the others from now on."""
        self.replicas.remove(service)
        self._chaos.kills += 1
        service.terminate()

    def suspend(self, service: Service) -> None:
        """SIGSTOP: it does nothing, and does not know it."""
        self._chaos.kills += 1
        os.kill(service.pid, signal.SIGSTOP)

    def wake(self, service: Service) -> None:
        """SIGCONT."""
        os.kill(service.pid, signal.SIGCONT)

    async def check(self) -> None:
        """Raises AssertionError with all invariants that do not hold."""
        await self._chaos.check(self.database_url)
