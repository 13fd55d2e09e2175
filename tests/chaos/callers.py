"""Callers who do what the contract asks of them when something fails: they try again, elsewhere, with the same key."""

from __future__ import annotations

import asyncio
import itertools
from types import TracebackType
from typing import Any, Self

import httpx

from tests.acceptance.client import TERMINAL, Client, Json, Sent, sent_events
from tests.acceptance.waiting import eventually
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

WITHIN_S = 120.0
_PAUSE_S = 0.1


def afresh(client: Client) -> Client:
    """The same caller with a connection for each request, so that none meets one that its replica gives up as idle."""
    client.http.headers["Connection"] = "close"
    return client


class Callers:
    """Any number of callers of a cluster, over one HTTP client. What they got an answer for has to hold."""

    def __init__(self, chaos: Gauge, cluster: Cluster) -> None:
        self._chaos = chaos
        self._cluster = cluster
        self._turn = itertools.count()
        self._keys = itertools.count(1)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(timeout=httpx.Timeout(30.0, pool=None), limits=limits, trust_env=False)

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request that may be sent again until some replica has answered it.

        Raises:
            AssertionError: nobody did within two minutes, or the answer was an error other than 429 and 503.
        """

        async def answered() -> httpx.Response | None:
            url = self._next_url()
            if url is None:
                return None
            try:
                answer = await self.http.request(method, url + path, **arguments)
            except httpx.TransportError:
                await asyncio.sleep(_PAUSE_S)
                return None
            assert answer.status_code < 500 or answer.status_code == 503, f"{method} {path}: {answer.text}"
            if answer.status_code in (429, 503):
                assert int(answer.headers["retry-after"]) > 0
                await asyncio.sleep(_PAUSE_S)
                return None
            return answer

        return await eventually(answered, f"an answer to {method} {path}", WITHIN_S)

    async def create(self, **body: Any) -> Json:
        """POST /runs with a key of its own, until it is acknowledged."""
        headers = {"Idempotency-Key": f"chaos-{next(self._keys)}"}
        answer = await self.ask("POST", "/runs", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        self._chaos.runs += 1
        return answer.json()

    async def get(self, run_id: str) -> Json:
        answer = await self.ask("GET", f"/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, run_id: str) -> Json:
        """The run once it is terminal."""

        async def look() -> Json | None:
            run = await self.get(run_id)
            return run if run["status"] in TERMINAL else None

        return await eventually(look, f"run {run_id} to end", WITHIN_S)

    async def all_ended(self, run_ids: list[str]) -> list[Json]:
        """All of these once they are terminal, asked for one after the other."""
        return [await self.ended(run_id) for run_id in run_ids]

    async def follow(self, run_id: str) -> list[Sent]:
        """All events of a run, with its stream rejoined wherever it broke off."""
        seen: list[Sent] = []

        async def joined() -> bool:
            url = self._next_url()
            if url is None:
                return False
            headers = {"Last-Event-ID": seen[-1].id} if seen else {}
            try:
                async with self.http.stream("GET", f"{url}/runs/{run_id}/events", headers=headers) as response:
                    if response.status_code == 204:
                        return True
                    if response.status_code == 200:
                        async for sent in sent_events(response):
                            seen.append(sent)
                    else:
                        assert response.status_code == 503, response.status_code
            except httpx.TransportError:
                pass
            await asyncio.sleep(_PAUSE_S)
            return False

        await eventually(joined, f"the end of the stream of run {run_id}", WITHIN_S)
        return seen

    def _next_url(self) -> str | None:
        replicas = self._cluster.replicas
        return replicas[next(self._turn) % len(replicas)].url if replicas else None
