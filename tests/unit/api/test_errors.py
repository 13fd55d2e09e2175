from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.api.errors import CODES, STATUS, ProblemCode, RequestError
from app.db.conflicts import TransactionUndone
from app.engine.status import RunStatus
from app.engine.store_errors import (
    AgentChanged,
    DamagedCheckpoint,
    IdempotencyMismatch,
    InteractionDecided,
    InteractionNotFound,
    LimitReached,
    ResultConflict,
    RunConflict,
    RunNotFound,
    StoreError,
    StoreUnavailable,
    ThreadBusy,
    ToolCallNotFound,
)
from app.services.agent_files import AgentFileError
from app.services.errors import (
    Conflict,
    EventsTrimmed,
    Invalid,
    NotFound,
    ServiceError,
    TooManyRuns,
    UnknownAgent,
    UnknownTool,
)
from app.services.policy_modules import PolicyModuleError
from tests.unit.api.conftest import StubServices

# Raised while the service starts, and while a run goes on.
_NOT_OF_REQUESTS = {AgentFileError, PolicyModuleError, DamagedCheckpoint}


@pytest.fixture
def failing(services: StubServices) -> Callable[[Exception], None]:
    """Makes `GET /runs/{run_id}` fail."""

    def fail(error: Exception) -> None:
        class Runs:
            async def get(self, run_id: str) -> Any:
                raise error

        services.runs = Runs()

    return fail


@pytest.mark.parametrize(
    ("error", "status", "code", "members"),
    [
        (NotFound("gone"), 404, "not_found", {"detail": "gone"}),
        (UnknownAgent("who"), 404, "unknown_agent", {"detail": "who"}),
        (
            Invalid("bad", ("body", "model")),
            422,
            "validation_error",
            {"errors": [{"loc": ["body", "model"], "msg": "bad"}]},
        ),
        (
            UnknownTool("no tool", ("body", "tools", 0)),
            422,
            "unknown_tool",
            {"errors": [{"loc": ["body", "tools", 0], "msg": "no tool"}]},
        ),
        (Conflict("busy", "running"), 409, "conflict", {"current_status": "running"}),
        (Conflict("there already"), 409, "conflict", {"current_status": None}),
        (RunConflict("over", RunStatus.CANCELLED), 409, "conflict", {"current_status": "cancelled"}),
        (RunNotFound("r"), 404, "not_found", {}),
        (InteractionNotFound("r", "i"), 404, "not_found", {"detail": "run r has no interaction i"}),
        (InteractionDecided("denied already"), 409, "conflict", {"current_status": None}),
        (ToolCallNotFound("r", "c"), 404, "not_found", {"detail": "run r has no tool call 'c'"}),
        (ResultConflict("there is another one"), 409, "conflict", {"current_status": None}),
        (LimitReached("at once"), 409, "limit_reached", {}),
        (ThreadBusy("held"), 409, "thread_busy", {}),
        (
            IdempotencyMismatch("other"),
            422,
            "idempotency_mismatch",
            {"errors": [{"loc": ["header", "Idempotency-Key"], "msg": "other"}]},
        ),
        (EventsTrimmed(120), 410, "events_trimmed", {"first_seq": 120}),
        (TooManyRuns("full", 7), 429, "too_many_runs", {}),
        (StoreUnavailable("no answer", "secret host name"), 503, "unavailable", {}),
        (TransactionUndone("deadlock detected"), 503, "unavailable", {}),
        (AgentChanged("again"), 503, "unavailable", {}),
    ],
)
async def test_every_refusal_has_its_status_and_code(
    client: httpx.AsyncClient,
    failing: Callable[[Exception], None],
    check: Callable[[str, object], None],
    error: Exception,
    status: int,
    code: str,
    members: dict[str, object],
) -> None:
    failing(error)
    answer = await client.get("/runs/r")
    problem = answer.json()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, "about:blank")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem.items() >= members.items()
    check("Problem", problem)


async def test_a_caller_is_told_when_to_come_back(
    client: httpx.AsyncClient, failing: Callable[[Exception], None]
) -> None:
    failing(TooManyRuns("full", 7))
    assert (await client.get("/runs/r")).headers["retry-after"] == "7"
    failing(StoreUnavailable("the database does not answer", "secret host name"))
    answer = await client.get("/runs/r")
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["detail"] == "the database does not answer"
    assert "secret" not in answer.text
    failing(TransactionUndone("deadlock detected"))
    assert (await client.get("/runs/r")).headers["retry-after"] == "1"


def test_the_table_has_every_exception_that_a_request_can_meet() -> None:
    roots = (ServiceError, StoreError, RequestError)
    raised = {kind for root in roots for kind in root.__subclasses__()}
    raised |= {kind for parent in raised for kind in parent.__subclasses__()}
    assert raised - _NOT_OF_REQUESTS == set(CODES)
    assert set(STATUS) == set(ProblemCode)


async def test_what_nobody_expected_is_500_without_a_trace(
    client: httpx.AsyncClient, failing: Callable[[Exception], None], caplog: pytest.LogCaptureFixture
) -> None:
    failing(RuntimeError("the password is hunter2"))
    answer = await client.get("/runs/r", headers={"X-Request-Id": "mine-1"})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["request_id"]) == (500, "internal", "mine-1")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text


async def test_nothing_there_is_404(client: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/runs/", "/runs/r/nothing", "/%00"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/runs", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("HEAD", "/runs/r/cancel", "OPTIONS, POST"),
        ("DELETE", "/agents", "GET, HEAD, OPTIONS"),
        ("PATCH", "/agents/a", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("TRACE", "/threads/t", "DELETE, GET, HEAD, OPTIONS, PATCH"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_405_with_those_it_has(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        assert answer.json()["code"] == "method_not_allowed"


async def test_options_tells_the_methods(client: httpx.AsyncClient) -> None:
    answer = await client.options("/runs")
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")


async def test_head_is_answered_where_get_is(client: httpx.AsyncClient) -> None:
    assert (await client.head("/healthz")).status_code == 200
    assert (await client.head("/openapi.json")).status_code == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a-1.b:c_2", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("<script>", False), ("", False)],
)
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, given: str, kept: bool) -> None:
    answer = await client.get("/healthz", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"]
