"""Replicas are restarted one after the other behind a load balancer, and no caller has anything to complain of."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.acceptance.client import TERMINAL, Json, an_agent, sent_events
from tests.acceptance.conftest import Serve, Settings
from tests.acceptance.service import Service
from tests.acceptance.waiting import DEADLINE_S, eventually, holds
from tests.balancer import Balancer
from tests.invariants import check_invariants

ROUNDS = 3
PAUSE_S = 0.05
# As long as a caller that reads the answers before it asks again.
THINKING_S = 0.3

# Connections that a replica is given after it was told to stop: far more than it could take while it stops at once.
GIVEN_WHILE_LEAVING = 20

_QUICK = [an_agent(model="openai/echo")]
_AGENTS = [an_agent(model=f"openai/{model}") for model in ("echo", "stream-30", "wait-0.5", "wait-1.5", "obey")]
_INPUTS = itertools.cycle(["Say something.", '[[["lookup", {"word": "one"}]], [["lookup", {"word": "two"}]]]'])


class Traffic:
    """Callers who do what callers do, and note what they were told.

    Args:
        agents: whom they ask, in turn.

    Attributes:
        acknowledged: the runs that somebody was told of.
        noted: what happened, and how often: answers, refusals, streams that were joined again, races on connections
            that were kept alive.
        complaints: what should not have happened.
    """

    def __init__(self, url: str, agents: Sequence[Json]) -> None:
        self._url = url
        self._agents = agents
        self.acknowledged: list[str] = []
        self.noted: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.closing = asyncio.Event()

    async def ask(
        self, http: httpx.AsyncClient, method: str, path: str, body: Json | None = None, key: str = ""
    ) -> Any:
        """The answer to a request, which is sent again where HTTP or the service allow it; None once it is a complaint.

        It may be sent again after a 503 with Retry-After; and if it got no byte of an answer on a connection that was
        used before (RFC 9112, section 9.6), provided that it is idempotent or carries an Idempotency-Key.
        """
        headers = {"Idempotency-Key": key} if key else {}
        again = method == "GET" or bool(key)
        while True:
            connected: list[str] = []

            async def trace(event: str, _: object, connected: list[str] = connected) -> None:
                if event == "connection.connect_tcp.complete":
                    connected.append(event)

            try:
                answer = await http.request(method, path, json=body, headers=headers, extensions={"trace": trace})
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                if connected or not again:
                    self.complaints.append(f"{method} {path}: {error!r}, {'new' if connected else 'kept'} connection")
                    return None
                self.noted["races on kept connections"] += 1
                continue
            if answer.status_code == 503 and "retry-after" in answer.headers:
                self.noted["told to go elsewhere"] += 1
                await asyncio.sleep(PAUSE_S)
            elif answer.is_success:
                self.noted[f"{method} {path.split('/')[-1] if method == 'POST' else 'a run'}"] += 1
                return answer.json()
            else:
                self.complaints.append(f"{method} {path}: {answer.status_code} {answer.text}")
                return None

    async def creates(self, http: httpx.AsyncClient, body: Json) -> None:
        """A run, without a key: it must not be sent twice."""
        await self._told(await self.ask(http, "POST", "/runs", body))

    async def creates_with_key(self, http: httpx.AsyncClient, body: Json) -> None:
        """A run, twice with the same key: it is the same one."""
        key = str(uuid4())
        first = await self.ask(http, "POST", "/runs", body, key)
        second = await self.ask(http, "POST", "/runs", body, key)
        await self._told(first)
        if first and second and first["run_id"] != second["run_id"]:
            self.complaints.append("a key made two runs")

    async def waits(self, http: httpx.AsyncClient, body: Json) -> None:
        """A run, and its end in the same answer."""
        run = await self.ask(http, "POST", "/runs/wait", body, str(uuid4()))
        await self._told(run)
        if run and run["status"] != "completed":
            self.complaints.append(f"a run was waited for, and is {run['status']}")

    async def looks(self, http: httpx.AsyncClient, body: Json) -> None:
        """A run, and how it stands, until it is over."""
        run = await self.ask(http, "POST", "/runs", body, str(uuid4()))
        await self._told(run)
        while run and run["status"] not in TERMINAL:
            await asyncio.sleep(PAUSE_S)
            run = await self.ask(http, "GET", f"/runs/{run['run_id']}")

    async def reads(self, http: httpx.AsyncClient, body: Json) -> None:
        """A run and its events; a stream that ends too early is joined again with the last id."""
        run = await self.ask(http, "POST", "/runs", body, str(uuid4()))
        await self._told(run)
        if run is None:
            return
        seen: list[Json] = []
        while not seen or seen[-1]["state"] not in TERMINAL:
            if await self._read_on(http, run["run_id"], seen):
                await asyncio.sleep(PAUSE_S)
        if [event["seq"] for event in seen] != list(range(1, len(seen) + 1)):
            self.complaints.append(f"a reader saw {[event['seq'] for event in seen]}")

    async def _read_on(self, http: httpx.AsyncClient, run_id: str, seen: list[Json]) -> bool:
        """Add what a stream gives; whether there may be more."""
        headers = {"Last-Event-ID": str(seen[-1]["seq"])} if seen else {}
        try:
            async with http.stream("GET", f"/runs/{run_id}/events", headers=headers) as response:
                if response.status_code == 503:
                    self.noted["told to go elsewhere"] += 1
                    return True
                if response.status_code != 200:
                    self.complaints.append(f"a stream: {response.status_code} {await response.aread()!r}")
                async for sent in sent_events(response):
                    seen.append(sent.event)
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            self.noted[f"streams that broke: {error!r}"] += 1
            return True
        over = bool(seen) and seen[-1]["state"] in TERMINAL
        self.noted["streams to the end" if over else "streams to be joined again"] += 1
        return not over

    async def _told(self, run: Json | None) -> None:
        if run is not None:
            self.acknowledged.append(run["run_id"])

    def keep_on(
        self, what: Callable[[httpx.AsyncClient, Json], Coroutine[Any, Any, None]], pause_s: float, *, kept: bool
    ) -> Coroutine[Any, Any, None]:
        """Do it again and again until told to close: on connections that are kept, or on a new one for each request."""

        async def loop() -> None:
            limits = httpx.Limits(max_keepalive_connections=20 if kept else 0, keepalive_expiry=60)
            async with httpx.AsyncClient(
                base_url=self._url, limits=limits, timeout=DEADLINE_S, trust_env=False, verify=False
            ) as http:
                while not self.closing.is_set():
                    agent = self._agents[len(self.acknowledged) % len(self._agents)]
                    await what(http, {"agent": agent, "input": next(_INPUTS)})
                    await asyncio.sleep(pause_s)

        return loop()


def of_all_kinds(traffic: Traffic) -> list[Coroutine[Any, Any, None]]:
    """Callers who create, wait, look and read."""
    doings = [
        (traffic.creates, PAUSE_S, True),
        (traffic.creates, PAUSE_S, False),
        (traffic.creates_with_key, THINKING_S, True),
        (traffic.waits, PAUSE_S, True),
        (traffic.waits, PAUSE_S, False),
        (traffic.looks, PAUSE_S, True),
        (traffic.reads, PAUSE_S, True),
        (traffic.reads, PAUSE_S, True),
        (traffic.reads, PAUSE_S, False),
    ]
    return [traffic.keep_on(what, pause_s, kept=kept) for what, pause_s, kept in doings]


@asynccontextmanager
async def steady(traffic: Traffic, callers: list[Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """The callers at work, until the end; then each has finished what it had begun."""
    tasks = [asyncio.create_task(caller) for caller in callers]
    try:
        await holds(lambda: len(traffic.acknowledged) > len(tasks), "traffic")
        yield
        traffic.closing.set()
        async with asyncio.timeout(2 * DEADLINE_S):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_no_caller_notices_that_replicas_are_restarted_one_after_the_other(
    database_url: str, settings: Settings, serve: Serve, request: pytest.FixtureRequest
) -> None:
    """Seen to fail without the line in the middleware that sets `Connection: close`: requests without a key are lost on
    connections that the replica has closed meanwhile."""
    environment = settings(DATABASE_URL=database_url, LEASE_S="60", SHUTDOWN_DELAY_S="1", SHUTDOWN_GRACE_S="10")
    ports = [free_port(), free_port()]
    replicas: list[Service] = [serve({**environment, "PORT": str(port)}) for port in ports]
    for replica in replicas:
        await asyncio.to_thread(replica.ready)
    async with Balancer([replica.url for replica in replicas]) as balancer:
        await holds(lambda: all(balancer.ready(replica.url) for replica in replicas), "both replicas to be ready")
        traffic = Traffic(balancer.url, _AGENTS)
        async with steady(traffic, of_all_kinds(traffic)):
            for _, place in itertools.product(range(ROUNDS), range(len(replicas))):
                served = len(traffic.acknowledged)
                replicas[place].terminate()
                assert await asyncio.to_thread(replicas[place].ended) == 0
                assert "Traceback" not in replicas[place].stderr()
                replicas[place] = serve({**environment, "PORT": str(ports[place])})
                await asyncio.to_thread(replicas[place].ready)
                await holds(lambda place=place: balancer.ready(replicas[place].url), "it to be ready again")
                await holds(lambda served=served: len(traffic.acknowledged) > served, "traffic to go on")
        request.node.user_properties.append(("measured", f"{dict(traffic.noted)}, {balancer.refused} refused"))
        assert traffic.complaints == []
        assert not [what for what in traffic.noted if "broke" in what]
        assert balancer.homeless == 0
        assert traffic.noted["streams to be joined again"] > 0
    await all_completed(database_url, traffic.acknowledged)


async def test_a_replica_answers_whoever_is_sent_to_it_before_the_balancer_has_noticed(
    database_url: str, settings: Settings, serve: Serve
) -> None:
    """It is told to stop right after the balancer found it ready, and goes on to be given connections, a new one for
    each request, until the next look. Nothing keeps it from stopping but the delay.

    Seen to fail with a SHUTDOWN_DELAY_S of 0: connections are refused then, which not every balancer takes elsewhere.
    """
    environment = settings(DATABASE_URL=database_url, LEASE_S="60")
    leaving, staying = serve({**environment, "SHUTDOWN_DELAY_S": "5"}), serve(environment)
    for replica in (leaving, staying):
        await asyncio.to_thread(replica.ready)
    async with Balancer([leaving.url, staying.url]) as balancer:
        await holds(lambda: balancer.ready(leaving.url) and balancer.ready(staying.url), "both replicas to be ready")
        traffic = Traffic(balancer.url, _QUICK)
        async with steady(traffic, [traffic.keep_on(traffic.creates, 0, kept=False) for _ in range(3)]):
            async with balancer.between_two_looks(leaving.url):
                leaving.terminate()
                enough = balancer.given[leaving.url] + GIVEN_WHILE_LEAVING
                await holds(lambda: balancer.given[leaving.url] >= enough, "the leaving replica to be given requests")
            await holds(lambda: not balancer.ready(leaving.url), "the balancer to notice")
            served = len(traffic.acknowledged)
            assert await asyncio.to_thread(leaving.ended) == 0
            await holds(lambda: len(traffic.acknowledged) > served, "traffic to go on")
        assert traffic.complaints == []
        assert (balancer.refused, balancer.homeless) == (0, 0)
    await all_completed(database_url, traffic.acknowledged)


async def all_completed(database_url: str, run_ids: list[str]) -> None:
    """Wait until no run is under way; those that were acknowledged are completed, and all else is in order."""
    connection = await asyncpg.connect(database_url)
    try:

        async def over() -> bool:
            active = "SELECT count(*) FROM runs WHERE finished_at IS NULL"
            return await connection.fetchval(active) == 0

        await eventually(over, "all runs to end")
        query = "SELECT status, count(*) FROM runs WHERE run_id = ANY($1::uuid[]) GROUP BY status"
        found = {row["status"]: row["count"] for row in await connection.fetch(query, run_ids)}
        assert found == {"completed": len(set(run_ids))}
        await check_invariants(connection)
    finally:
        await connection.close()
