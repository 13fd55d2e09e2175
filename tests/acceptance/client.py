"""A caller of the service over HTTP, as independent clients are: it knows the contract and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

from tests.acceptance.waiting import DEADLINE_S, eventually

TERMINAL = frozenset({"completed", "degraded", "failed", "cancelled", "interrupted"})
DELTAS = frozenset({"text_delta", "reasoning_delta", "tool_call_delta"})

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """A server-sent event; `raw` are its bytes as they came."""

    id: str
    type: str
    event: Json
    raw: bytes


class Client:
    """One caller of one replica. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        timeout = httpx.Timeout(DEADLINE_S, pool=None)
        self.http = httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False, verify=False)

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def create(self, **body: Any) -> Json:
        """POST /runs."""
        return _checked(await self.http.post("/runs", json=body), 202)

    async def create_and_wait(self, **body: Any) -> Json:
        """POST /runs/wait."""
        return _checked(await self.http.post("/runs/wait", json=body), 200)

    async def get(self, run_id: str) -> Json:
        return _checked(await self.http.get(f"/runs/{run_id}"), 200)

    async def wait(self, run_id: str) -> Json:
        """GET /runs/{run_id}/wait: the run at its end, paused, or as it stands after a long time."""
        return _checked(await self.http.get(f"/runs/{run_id}/wait", params={"timeout_s": DEADLINE_S}), 200)

    async def until(self, run_id: str, *statuses: str) -> Json:
        """Ask for the run until it has one of these statuses."""

        async def look() -> Json | None:
            run = await self.get(run_id)
            return run if run["status"] in statuses else None

        return await eventually(look, f"the run to be {' or '.join(statuses)}")

    async def ask(self, request: str, run_id: str, **body: Any) -> httpx.Response:
        """POST pause, resume, cancel or interrupt."""
        return await self.http.post(f"/runs/{run_id}/{request}", json=body or None)

    async def steer(self, request: str, run_id: str, **body: Any) -> Json:
        """The same, where it is allowed."""
        return _checked(await self.ask(request, run_id, **body), 200)

    async def events(self, run_id: str) -> list[Json]:
        """All events of a run, through its list."""
        found: list[Json] = []
        after: int | None = 0
        while after is not None:
            page = await self.http.get(f"/runs/{run_id}/events/list", params={"after": after, "limit": 100})
            answer = _checked(page, 200)
            found += answer["items"]
            after = answer["next_cursor"]
        return found

    async def put_agent(self, name: str, **settings: Any) -> None:
        """PUT /agents/{name}, of the tests' model."""
        answer = await self.http.put(f"/agents/{name}", json={"model": "openai/gpt-4o-mini", **settings})
        assert answer.status_code in (200, 201), answer.text

    async def interactions(self, run_id: str) -> list[Json]:
        """All questions of a run, oldest first."""
        answer = await self.http.get(f"/runs/{run_id}/interactions", params={"limit": 100})
        return _checked(answer, 200)["items"]

    async def answer(self, question: Json, decision: str, **body: Any) -> httpx.Response:
        """POST the decision on a question."""
        path = f"/runs/{question['run_id']}/interactions/{question['interaction_id']}"
        return await self.http.post(path, json={"decision": decision, **body})

    async def decide(self, question: Json, decision: str, **body: Any) -> Json:
        """The same, where it is taken; the question after it."""
        return _checked(await self.answer(question, decision, **body), 200)

    async def post_result(self, run_id: str, tool_call_id: str, **body: Any) -> httpx.Response:
        """POST the result of a tool call: an output or an error."""
        return await self.http.post(f"/runs/{run_id}/tool-calls/{tool_call_id}/result", json=body)

    async def deliver(self, run_id: str, tool_call_id: str, **body: Any) -> Json:
        """The same, where it is taken."""
        return _checked(await self.post_result(run_id, tool_call_id, **body), 200)

    async def messages(self, thread_id: str) -> list[Json]:
        answer = await self.http.get(f"/threads/{thread_id}/messages", params={"limit": 100})
        return _checked(answer, 200)["items"]

    @asynccontextmanager
    async def stream(
        self, run_id: str, *, last_id: str | None = None, **params: Any
    ) -> AsyncGenerator[AsyncGenerator[Sent]]:
        """GET /runs/{run_id}/events, event by event."""
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        async with self.http.stream("GET", f"/runs/{run_id}/events", headers=headers, params=params) as response:
            assert response.status_code == 200, await response.aread()
            yield sent_events(response)

    async def streamed(self, run_id: str, **arguments: Any) -> list[Sent]:
        """The events of a run up to the end of its stream."""
        async with self.stream(run_id, **arguments) as events:
            return [sent async for sent in events]


async def sent_events(response: httpx.Response) -> AsyncGenerator[Sent]:
    """The events of a stream as they come; comments and `retry` are passed over."""
    buffered = b""
    async for piece in response.aiter_raw():
        buffered += piece
        *blocks, buffered = buffered.split(b"\n\n")
        for block in blocks:
            lines = [line.partition(b": ") for line in block.split(b"\n")]
            fields = {name.decode(): value.decode() for name, _, value in lines}
            if "data" in fields:
                yield Sent(fields["id"], fields["event"], json.loads(fields["data"]), block)


def an_agent(**settings: Any) -> Json:
    """An inline agent of the tests' model, with all of the tests' tools."""
    tools = ["lookup", "fail", "read", "put", "send", "calculate"]
    return {"name": "tester", "model": "openai/gpt-4o-mini", "tools": tools, **settings}


def problem(response: httpx.Response, status: int, code: str) -> Json:
    """A refusal as the contract has it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    answer = response.json()
    assert (answer["status"], answer["code"]) == (status, code), answer
    return answer


def types_of(events: list[Json]) -> list[str]:
    """The types of events but for deltas, which come in as many pieces as the network likes."""
    return [event["type"] for event in events if event["type"] not in DELTAS]


def of_type(events: list[Json], kind: str) -> list[Json]:
    return [event for event in events if event["type"] == kind]


def check_log(events: list[Json], run: Json) -> None:
    """What holds for every log: seqs without a gap, and the last event agrees with the run."""
    assert [event["seq"] for event in events] == list(range(1, run["last_event_seq"] + 1))
    assert events[-1]["state"] == run["status"]
    assert {(event["run_id"], event["thread_id"]) for event in events} == {(run["run_id"], run["thread_id"])}
    if run["status"] in TERMINAL:
        assert run["result"]["state"] == run["status"]


def _checked(response: httpx.Response, status: int) -> Json:
    assert response.status_code == status, f"{response.request.method} {response.request.url}: {response.text}"
    return response.json()
