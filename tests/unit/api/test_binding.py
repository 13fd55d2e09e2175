from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.api.binding import Binder
from app.api.schemas.queries import RunListQuery, metadata_of
from app.services.pages import Page
from tests.unit.api.conftest import StubServices
from tests.unit.api.records import a_run


@pytest.fixture
def asked(services: StubServices) -> list[Any]:
    """The filters, cursors and limits that lists of runs were asked for with."""
    calls: list[Any] = []

    class RunQueries:
        async def list(self, *arguments: Any) -> Page[Any, str]:
            calls.append(arguments)
            return Page([a_run()], "next")

    services.run_queries = RunQueries()
    return calls


def _loc(answer: httpx.Response) -> list[str | int]:
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "validation_error"
    return answer.json()["errors"][0]["loc"]


async def test_a_query_is_read_by_its_types(client: httpx.AsyncClient, asked: list[Any]) -> None:
    answer = await client.get(
        "/runs?thread_id=t&agent=a&status=failed&status=running&parent_run_id=019AA3F0-5b6e-7c31-9d0c-2f4b8a6e1d57"
        "&metadata=team:a:b&metadata.env=prod&created_after=2026-01-31T09:00:00%2B01:00&limit=7&cursor=c"
    )
    assert answer.status_code == 200
    filters, cursor, limit = asked[0]
    assert (filters.thread_id, filters.agent, list(filters.statuses)) == ("t", "a", ["failed", "running"])
    assert str(filters.parent_run_id) == "019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d57"
    assert filters.metadata == {"team": "a:b", "env": "prod"}
    assert filters.created_after.isoformat() == "2026-01-31T08:00:00+00:00"
    assert (cursor, limit) == ("c", 7)


async def test_lists_are_answered_with_their_cursor_and_without_results(
    client: httpx.AsyncClient, asked: list[Any]
) -> None:
    answer = (await client.get("/runs")).json()
    assert answer["next_cursor"] == "next"
    assert answer["items"][0]["result"] is None
    assert asked[0][1:] == (None, 20)


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("nonsense=1", ["query", "nonsense"]),
        ("limit=0", ["query", "limit"]),
        ("limit=101", ["query", "limit"]),
        ("limit=", ["query", "limit"]),
        ("limit=5.0", ["query", "limit"]),
        ("limit=+5", ["query", "limit"]),
        ("limit=1_0", ["query", "limit"]),
        ("limit=%EF%BC%95", ["query", "limit"]),
        ("limit=99999999999999999999999999", ["query", "limit"]),
        ("limit=5&limit=6", ["query", "limit"]),
        ("status=done", ["query", "status", 0]),
        ("parent_run_id=x", ["query", "parent_run_id"]),
        ("metadata=team", ["query", "metadata", 0]),
        ("metadata=:a", ["query", "metadata", 0]),
        ("metadata.=a", ["query", "metadata", 0]),
        ("metadata.a:b=c", ["query", "metadata.a:b"]),
        ("created_after=yesterday", ["query", "created_after"]),
        ("created_after=5", ["query", "created_after"]),
        ("created_after=2026-01-31", ["query", "created_after"]),
        ("created_after=2026-01-31T08:00:00", ["query", "created_after"]),
        ("created_after=0001-01-01T00:00:00%2B14:00", ["query", "created_after"]),
        ("created_before=9999-12-31T23:59:59-14:00", ["query", "created_before"]),
        ("agent=a%00", ["query", "agent"]),
        ("a%00=1", ["query", "a"]),
        ("cursor=" + "x" * 501, ["query", "cursor"]),
    ],
)
async def test_a_bad_query_names_its_parameter(
    client: httpx.AsyncClient, asked: list[Any], query: str, loc: list[str]
) -> None:
    assert _loc(await client.get(f"/runs?{query}")) == loc
    assert asked == []


@pytest.mark.parametrize("query", ["%ff=%fe", "agent=%ff%fe", "agent=%ED%A0%80", "&&&", "=", "agent=%", "cursor=%zz"])
async def test_a_garbled_query_is_no_error_of_ours(client: httpx.AsyncClient, asked: list[Any], query: str) -> None:
    assert (await client.get(f"/runs?{query}")).status_code in (200, 422)


async def test_a_path_without_parameters_takes_none(client: httpx.AsyncClient) -> None:
    assert _loc(await client.get("/healthz?a=1")) == ["query", "a"]


@pytest.mark.parametrize(
    ("path", "loc"),
    [
        ("/threads/-a", ["path", "thread_id"]),
        ("/threads/a%00b", ["path", "thread_id"]),
        ("/threads/a%0A", ["path", "thread_id"]),
        ("/threads/" + "a" * 256, ["path", "thread_id"]),
        ("/threads/%ff", ["path", "thread_id"]),
        ("/runs/a%00b", ["path", "run_id"]),
        ("/agents/9", ["path", "name"]),
    ],
)
async def test_a_bad_path_names_its_part(client: httpx.AsyncClient, path: str, loc: list[str]) -> None:
    assert _loc(await client.get(path)) == loc


@pytest.mark.parametrize("key", [b"", b"a" * 256, b"\xc3\xa9", b"a\tb", b"\x7f"])
async def test_an_idempotency_key_is_1_to_255_printable_characters(client: httpx.AsyncClient, key: bytes) -> None:
    answer = await client.post("/threads", headers=[(b"Idempotency-Key", key)])
    assert _loc(answer) == ["header", "Idempotency-Key"]


@pytest.mark.parametrize("cursor", ["x", "-1", "1.0", " 1", "9" * 19, "١"])
async def test_a_last_event_id_is_a_number(client: httpx.AsyncClient, cursor: str) -> None:
    answer = await client.get("/runs/r/events", headers=[(b"Last-Event-ID", cursor.encode())])
    assert _loc(answer) == ["header", "Last-Event-ID"]


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("subagents=true&after=3", ["query", "after"]),
        ("subagents=yes", ["query", "subagents"]),
        ("deltas=0", ["query", "deltas"]),
        ("types=", ["query", "types"]),
        ("types=a,,b", ["query", "types"]),
        ("types=run_completed,nonsense", ["query", "types"]),
        ("after=-1", ["query", "after"]),
        ("after=99999999999999999999", ["query", "after"]),
    ],
)
async def test_a_bad_stream_query_is_refused_before_the_stream(
    client: httpx.AsyncClient, query: str, loc: list[str]
) -> None:
    assert _loc(await client.get(f"/runs/r/events?{query}")) == loc


@pytest.mark.parametrize("timeout", ["-1", "300.5", "nan", "inf", "1e2", "", "x"])
async def test_a_wait_lasts_300_seconds_at_most(client: httpx.AsyncClient, timeout: str) -> None:
    assert _loc(await client.get(f"/runs/r/wait?timeout_s={timeout}")) == ["query", "timeout_s"]


def test_metadata_values_may_hold_colons() -> None:
    assert metadata_of(["a:b:c", "d:"]) == {"a": "b:c", "d": ""}
    assert RunListQuery().filters().metadata == {}


def test_an_endpoint_that_asks_for_what_nobody_knows_is_refused_at_once() -> None:
    async def endpoint(run_id: str) -> None: ...

    with pytest.raises(TypeError, match="run_id"):
        Binder(endpoint, takes_body=False)
