"""Callers who send what nobody should, while others work."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

from tests.acceptance.client import TERMINAL, Json
from tests.acceptance.gates import Gate
from tests.acceptance.service import Service
from tests.chaos import hostile
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.work import WORKER, check_effects, some_work
from tests.contract.http.test_fuzz import fuzz

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

AT_ONCE = 8
MEGABYTES = 50
TAKING = ("/runs", "/runs/wait", "/runs/batch", "/threads", "/threads/a-thread/messages", "/runs/stream")
WITHOUT_INPUT = ("/metrics", "/info", "/healthz", "/readyz")
DISTURBING = ("delete_run", "delete_thread", "cancel_run", "interrupt_run", "pause_run")
MOST_TOLD = 100_000
# Were bodies kept, a few of them alone would be more.
MOST_GROWTH = 120 * 1024 * 1024

AGENT: Json = {
    "name": "victim",
    "model": "openai/echo",
    "instructions": "Be {{ mood }}.",
    "tools": ["lookup"],
    "limits": {"max_steps": 3, "max_total_cost_usd": 1.5},
    "model_settings": {"temperature": 0.5},
    "context_defaults": {"mood": "kind"},
    "tool_definitions": [
        {"type": "caller", "name": "ask", "description": "Ask.", "parameters": {"type": "object", "properties": {}}}
    ],
    "policy": {"rules": [{"rule_id": "no", "action": "deny", "subjects": ["tool_call"], "condition": {}}]},
    "metadata": {"team": "a"},
}
RUN: Json = {
    "agent": AGENT,
    "input": [{"role": "user", "content": [{"type": "text", "text": "Go."}]}],
    "thread_id": "a-thread",
    "context": {"mood": {"deep": ["er"]}},
    "metadata": {"team": "a"},
    "limits": {"max_steps": 2},
    "model_settings": {"max_tokens": 5},
    "on_busy_thread": "enqueue",
    "start_after": "2026-01-31T08:00:00Z",
    "user_id": "somebody",
}
RICH: dict[str, Json] = {
    "RunCreate": RUN,
    "RunsCreate": {"items": [RUN, {"agent": "victim", "input": "Go."}]},
    "AgentPut": {key: value for key, value in AGENT.items() if key != "name"},
}


@dataclass(frozen=True, slots=True)
class _Request:
    """A request; what stands in `query` and in the path is encoded already."""

    method: str
    path: str
    query: str = ""
    body: bytes | None = None


class _Attack:
    """Requests made from the service's own document, with hostile values in every place that a caller can fill.

    Args:
        ordinary: what stands in the other places of a path, by the name of the parameter.

    Attributes:
        answers: how many there were of each status.
    """

    def __init__(self, chaos: Gauge, http: httpx.AsyncClient, urls: list[str], ordinary: dict[str, str]) -> None:
        self._dice = chaos.dice
        self._http = http
        self._urls = urls
        self._ordinary = ordinary
        self._segments = hostile.segments(chaos.dice)
        self._values = hostile.values(chaos.dice)
        self.answers: Counter[int] = Counter()

    def requests(self, document: Json, most: int) -> list[_Request]:
        """One for each value in each place of a path or a query, and as many with bodies; of both, `most` at most."""
        plain: list[_Request] = []
        bodies = [_Request("POST", path, body=body) for path in TAKING for body in hostile.bodies(self._dice)]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if path not in WITHOUT_INPUT:
                    plain += self._of_parameters(method.upper(), path, operation)
                    bodies += self._of_bodies(method.upper(), path, operation, document["components"]["schemas"])
        chosen = [request for made in (plain, bodies) for request in self._dice.sample(made, min(len(made), most))]
        self._dice.shuffle(chosen)
        return chosen

    def _of_parameters(self, method: str, path: str, operation: Json) -> Iterator[_Request]:
        for parameter in operation.get("parameters", ()):
            name = parameter["name"]
            for given in self._segments:
                match parameter["in"]:
                    case "path":
                        yield _Request(method, self._filled(path.replace(f"{{{name}}}", given)))
                    case "query":
                        yield _Request(method, self._filled(path), f"?{name}={given}")
                    case _:
                        break  # every request has a hostile header now and then

    def _of_bodies(self, method: str, path: str, operation: Json, schemas: Json) -> Iterator[_Request]:
        if "requestBody" not in operation:
            return
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        body = RICH.get(name) or schemas[name]["examples"][0]
        for value in self._values:
            for place in hostile.places(body):
                made = hostile.replaced(body, place, value)
                yield _Request(method, self._filled(path), body=json.dumps(made).encode())
            for made in (hostile.mutated(self._dice, body, self._values) for _ in range(5)):
                yield _Request(method, self._filled(path), body=json.dumps(made).encode())

    def _filled(self, path: str) -> str:
        for name, value in self._ordinary.items():
            path = path.replace(f"{{{name}}}", value)
        return path

    async def send(self, request: _Request) -> None:
        """Send it to one of the replicas, and check the answer."""
        url = self._dice.choice(self._urls) + request.path + request.query
        extra = hostile.headers(self._dice) if self._dice.random() < 0.2 else {}
        headers: Any = {"content-type": b"application/json", **{name.lower(): value for name, value in extra.items()}}
        async with self._http.stream(request.method, url, content=request.body, headers=headers) as answer:
            self.answers[answer.status_code] += 1
            if answer.status_code < 400:
                return  # a thread's stream has no end
            told = await answer.aread()
            about = f"{request!r:.1000} {extra}: {answer.status_code} {told[:500]}"
            assert answer.status_code < 500, about
            assert answer.headers["content-type"] == "application/problem+json", about
            assert answer.json()["status"] == answer.status_code, about
            assert len(told) < MOST_TOLD, about


@asynccontextmanager
async def at_work(chaos: Gauge, callers: Callers, gate: Gate) -> AsyncIterator[list[str]]:
    """Others who create runs with tools meanwhile, one after the other; at the end, the ids of their runs."""
    made: list[str] = []
    over = asyncio.Event()

    async def work() -> None:
        while not over.is_set():
            made.append((await callers.create(agent=WORKER, input=some_work(chaos, gate.name)))["run_id"])
            await callers.ended(made[-1])

    working = [asyncio.create_task(work()) for _ in range(3)]
    try:
        yield made
        over.set()
        await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def check_work(cluster: Cluster, callers: Callers, gate: Gate, made: list[str], sql: Database) -> None:
    """All runs of those who work are done, what the others have made comes to an end, no replica logged an error."""
    done = await callers.all_ended(made)
    assert {run["status"] for run in done} == {"completed"}
    check_effects(gate, done)
    for row in await sql.fetch("SELECT run_id FROM runs WHERE finished_at IS NULL"):
        stopped = await callers.ask("POST", f"/runs/{row['run_id']}/cancel")
        assert stopped.json()["status"] in TERMINAL
    for service in cluster.replicas:
        assert "[error" not in service.stderr(), service.told()
        assert "Traceback" not in service.stderr(), service.told()
    await cluster.check()


def peak_memory(service: Service) -> int:
    """The most bytes that the process ever had in memory."""
    lines = Path(f"/proc/{service.pid}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(peak)


@pytest.mark.scenario(25, short=True)
async def test_what_does_not_fit_is_refused_and_nothing_else_is_touched(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate, sql: Database
) -> None:
    """Forged ids and cursors, wrong types, NULs, surrogates, depth, and names of 8 KB, in every place of every request.

    Seen to fail without: the refusal of NUL characters, that of forged cursors.
    """
    replicas = await cluster.start(2, LEASE_S="15")
    urls = [service.url for service in replicas]
    document = (await callers.http.get(f"{urls[0]}/openapi.json")).json()
    victim = await callers.create(agent={"name": "victim", "model": "openai/echo"}, input="Go.", thread_id="a-thread")
    ordinary = {"run_id": victim["run_id"], "thread_id": "a-thread", "name": "victim", "tool_call_id": "call_1"}
    attack = _Attack(chaos, callers.http, urls, ordinary)
    left = iter(attack.requests(document, chaos.size(2500, 200)))

    async def attacker() -> None:
        for request in left:
            await attack.send(request)

    async with at_work(chaos, callers, gate) as made:
        await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
    assert {404, 422} <= attack.answers.keys()
    await check_work(cluster, callers, gate, made, sql)


@pytest.mark.scenario(25, short=True)
async def test_bodies_without_measure_and_what_is_no_request_cost_no_memory(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate, sql: Database
) -> None:
    """Many of 50 MB at once, with their length and without, are refused before they are read.

    Seen to fail without: the bound on a body while it is read.
    """
    replicas = await cluster.start(2, LEASE_S="15")
    before = [peak_memory(service) for service in replicas]

    async def too_much(service: Service, chunked: bool) -> None:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (MEGABYTES * 1024 * 1024)
        head = b"POST /runs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%s\r\n\r\n" % length
        answer = await hostile.told(service.url, head, hostile.large_body(MEGABYTES, chunked=chunked))
        assert hostile.status_of(answer) == 413, answer[:500]
        assert hostile.problem_of(answer)["code"] == "payload_too_large"

    async with at_work(chaos, callers, gate) as made:
        for _ in range(chaos.size(5, 1)):
            bodies = [(service, chunked) for service in replicas * 4 for chunked in (True, False)]
            await asyncio.gather(*(too_much(*body) for body in bodies))
            for request in hostile.no_http(chaos.dice):
                answer = await hostile.told(chaos.dice.choice(replicas).url, request, within_s=1.0)
                assert not answer or 400 <= hostile.status_of(answer) < 500, (request[:200], answer[:500])
    grown = [peak_memory(service) - peak for service, peak in zip(replicas, before, strict=True)]
    assert max(grown) < MOST_GROWTH, grown
    chaos.measured.append(f"16 bodies of {MEGABYTES} MB at once: at most {max(grown) / 2**20:.0f} MB more in memory")
    await check_work(cluster, callers, gate, made, sql)


@pytest.mark.scenario(25)
async def test_headers_without_measure_are_refused_and_cost_no_memory(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate, sql: Database
) -> None:
    """Fifty megabytes of them, on several connections at once.

    Seen to fail without: the bound on a request's head.
    """
    (service,) = await cluster.start(LEASE_S="15")
    before = peak_memory(service)

    async def too_many() -> None:
        answer = await hostile.told(service.url, b"GET /runs HTTP/1.1\r\n", hostile.many_headers(MEGABYTES))
        assert not answer or hostile.status_of(answer) in (400, 431), answer[:500]

    async with at_work(chaos, callers, gate) as made:
        await asyncio.gather(*(too_many() for _ in range(4)))
    assert peak_memory(service) - before < MOST_GROWTH
    await check_work(cluster, callers, gate, made, sql)


@pytest.mark.scenario(25)
@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
async def test_requests_made_up_from_the_document_are_answered_as_it_says_while_runs_go_on(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate, sql: Database, tmp_path: Path, phase: str
) -> None:
    """With the scenario's seed. Seen to fail without: the refusal of forged cursors."""
    (service,) = await cluster.start(LEASE_S="15")
    async with at_work(chaos, callers, gate) as made:
        done = await asyncio.to_thread(fuzz, service.url, tmp_path, phase, 60, chaos.seed, sparing=DISTURBING)
    assert done.returncode == 0, done.stdout + done.stderr
    await check_work(cluster, callers, gate, made, sql)
