"""Requests about what runs wait for, as they reach the services."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.engine.interactions import Decision, InteractionKind, InteractionRecord, InteractionStatus
from app.engine.records import Stimulated
from app.engine.status import RunStatus
from app.services.errors import Conflict
from app.services.interactions import Resolution
from app.services.pages import Page
from tests.unit.api.conftest import StubServices
from tests.unit.api.records import MORNING, RUN_ID

QUESTION = InteractionRecord(
    interaction_id="i",
    run_id=RUN_ID,
    step=1,
    call_index=0,
    kind=InteractionKind.APPROVAL,
    status=InteractionStatus.PENDING,
    tool_name="refund",
    tool_call_id="call_1",
    arguments="{}",
    prompt="?",
    reason=None,
    answer=None,
    expires_at=MORNING,
    created_at=MORNING,
    resolved_at=None,
)


class Interactions:
    """One question, and what was asked for and answered."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def list_all(self, *arguments: Any) -> Page[InteractionRecord, str]:
        self.asked.append(arguments)
        return Page([QUESTION], "next")

    async def list_run(self, *arguments: Any) -> Page[InteractionRecord, str]:
        self.asked.append(arguments)
        return Page([QUESTION], None)

    async def resolve(self, *arguments: Any) -> InteractionRecord:
        self.asked.append(arguments)
        return QUESTION


class Runs:
    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.refusal: Exception | None = None

    async def post_result(self, run_id: str, *arguments: Any) -> Stimulated:
        if self.refusal is not None:
            raise self.refusal
        self.posted.append((run_id, *arguments))
        return Stimulated(run_id, RunStatus.QUEUED, changed=len(self.posted) == 1)


@pytest.fixture
def interactions(services: StubServices) -> Interactions:
    services.interactions = Interactions()
    return services.interactions


@pytest.fixture
def runs(services: StubServices) -> Runs:
    services.runs = Runs()
    return services.runs


def _loc(answer: httpx.Response) -> list[str | int]:
    assert answer.status_code == 422, answer.text
    return answer.json()["errors"][0]["loc"]


async def test_the_inbox_is_what_is_pending(client: httpx.AsyncClient, interactions: Interactions) -> None:
    answer = await client.get("/interactions?status=pending&status=expired&limit=2&cursor=c")
    assert answer.json()["next_cursor"] == "next"
    assert interactions.asked == [([InteractionStatus.PENDING, InteractionStatus.EXPIRED], "c", 2)]
    await client.get("/interactions")
    assert interactions.asked[1] == ([], None, 20)
    assert _loc(await client.get("/interactions?status=open")) == ["query", "status", 0]


async def test_a_runs_questions_are_paged(client: httpx.AsyncClient, interactions: Interactions) -> None:
    answer = await client.get("/runs/r/interactions?limit=1")
    assert [item["interaction_id"] for item in answer.json()["items"]] == ["i"]
    assert interactions.asked == [("r", None, 1)]
    assert _loc(await client.get("/runs/r/interactions?status=pending")) == ["query", "status"]


async def test_an_answer_reaches_the_service(client: httpx.AsyncClient, interactions: Interactions) -> None:
    body = {"decision": "approve", "value": [1.5, None], "reason": "fine", "decided_by": "ann"}
    assert (await client.post("/runs/r/interactions/i", json=body)).status_code == 200
    await client.post("/runs/r/interactions/i", json={"decision": "approve", "arguments": {"a": 1}})
    await client.post("/runs/r/interactions/i", json={"decision": "deny", "value": None, "arguments": None})
    assert [resolution for _, _, resolution in interactions.asked] == [
        Resolution(Decision.APPROVE, [1.5, None], None, "fine", "ann"),
        Resolution(Decision.APPROVE, arguments={"a": 1}),
        Resolution(Decision.DENY),
    ]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["decision"]),
        ({"decision": "maybe"}, ["decision"]),
        ({"decision": "approve", "arguments": [1]}, ["arguments"]),
        ({"decision": "approve", "arguments": "{}"}, ["arguments"]),
        ({"decision": "approve", "decided_by": ""}, ["decided_by"]),
        ({"decision": "approve", "reason": 5}, ["reason"]),
        ({"decision": "approve", "answer": 5}, ["answer"]),
    ],
)
async def test_an_answer_that_is_none_is_refused(
    client: httpx.AsyncClient, interactions: Interactions, body: dict[str, Any], loc: list[str]
) -> None:
    assert _loc(await client.post("/runs/r/interactions/i", json=body)) == ["body", *loc]
    assert interactions.asked == []


@pytest.mark.parametrize(
    ("body", "output", "error"),
    [
        ('{"output": {"a": 1.0}}', '{"a":1.0}', None),
        ('{"output": null}', "null", None),
        ('{"output": null, "error": null}', "null", None),
        ('{"output": "", "error": null}', '""', None),
        ('{"error": "no such order"}', None, "no such order"),
    ],
)
async def test_a_result_is_an_output_or_an_error(
    client: httpx.AsyncClient, runs: Runs, body: str, output: str | None, error: str | None
) -> None:
    answer = await client.post("/runs/r/tool-calls/call_1/result", content=body)
    assert answer.json() == {"run_id": "r", "tool_call_id": "call_1", "run_status": "queued", "accepted": True}
    assert runs.posted == [("r", "call_1", output, error)]
    again = await client.post("/runs/r/tool-calls/call_1/result", content=body)
    assert (again.status_code, again.json()["accepted"]) == (200, False)


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["output"]),
        ({"error": None}, ["output"]),
        ({"error": ""}, ["error"]),
        ({"error": 5}, ["error"]),
        ({"output": 1, "error": "x"}, ["error"]),
        ({"output": None, "error": "x"}, ["error"]),
        ({"result": 1}, ["result"]),
    ],
)
async def test_a_result_that_is_none_or_two_is_refused(
    client: httpx.AsyncClient, runs: Runs, body: dict[str, Any], loc: list[str]
) -> None:
    assert _loc(await client.post("/runs/r/tool-calls/c/result", json=body)) == ["body", *loc]
    assert runs.posted == []


@pytest.mark.parametrize("call_id", ["functions.get:0", "a/b", "call 1", "ü"])
async def test_a_call_is_named_as_the_model_named_it(client: httpx.AsyncClient, runs: Runs, call_id: str) -> None:
    path = f"/runs/r/tool-calls/{quote(call_id, safe='')}/result"
    assert (await client.post(path, json={"output": 1})).json()["tool_call_id"] == call_id
    assert runs.posted == [("r", call_id, "1", None)]


async def test_another_result_is_a_conflict_that_tells_the_runs_status(client: httpx.AsyncClient, runs: Runs) -> None:
    runs.refusal = Conflict("the call has another result", RunStatus.RUNNING)
    answer = await client.post("/runs/r/tool-calls/c/result", json={"output": 1})
    assert (answer.status_code, answer.json()["current_status"]) == (409, "running")
