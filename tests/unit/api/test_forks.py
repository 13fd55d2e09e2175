"""What a request to fork says, and what is refused of it before any service is asked."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.engine.agent import AgentDefinition
from app.engine.messages import Message, Role
from app.engine.ownership import Created
from app.services.forks import ForkRun
from tests.unit.api.conftest import StubServices
from tests.unit.api.records import RUN_ID, a_run

PATH = f"/runs/{RUN_ID}/fork"


class Forks:
    """Forks nothing and notes what was asked for."""

    def __init__(self) -> None:
        self.commands: list[ForkRun] = []
        self.keys: list[Any] = []
        self.replayed = False

    async def fork(self, command: ForkRun, key: Any) -> Created:
        self.commands.append(command)
        self.keys.append(key)
        return Created(a_run(), replayed=self.replayed)


@pytest.fixture
def forks(services: StubServices) -> Forks:
    services.forks = Forks()
    return services.forks


@pytest.mark.parametrize("body", [b"", b"{}", b'{"input": null, "agent": null, "checkpoint_id": null}'])
async def test_a_fork_may_leave_everything_as_it_is(client: httpx.AsyncClient, forks: Forks, body: bytes) -> None:
    answer = await client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["location"]) == (202, f"/runs/{RUN_ID}")
    assert "idempotency-replayed" not in answer.headers
    assert (forks.commands, forks.keys) == ([ForkRun(RUN_ID)], [None])


async def test_everything_that_a_request_says_reaches_the_service(client: httpx.AsyncClient, forks: Forks) -> None:
    inline = {"name": "inline", "model": "demo/echo"}
    body = {"checkpoint_id": "6", "thread_id": "new", "input": "hello", "agent": inline, "context": {"a": [1]}}
    assert (await client.post(PATH, json=body)).status_code == 202
    expected = ForkRun(
        RUN_ID, "6", "new", (Message(Role.USER, "hello"),), AgentDefinition.model_validate(inline), {"a": [1]}
    )
    assert forks.commands == [expected]


async def test_a_key_is_for_one_run_and_one_body(client: httpx.AsyncClient, forks: Forks) -> None:
    forks.replayed = True
    for path, body in ((PATH, {}), (PATH, {}), (PATH, {"input": "x"}), (f"{PATH.replace('019a', '019b')}", {})):
        answer = await client.post(path, json=body, headers={"Idempotency-Key": "k"})
        assert answer.headers["idempotency-replayed"] == "true"
    first, second, *others = [key.request_hash for key in forks.keys]
    assert first == second
    assert len({first, *others}) == 3


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"input": []}, ["input"]),
        ({"input": 7}, ["input"]),
        ({"input": [{"role": "assistant", "content": "x"}]}, ["input", 0, "role"]),
        ({"thread_id": "-"}, ["thread_id"]),
        ({"checkpoint_id": 6}, ["checkpoint_id"]),
        ({"checkpoint_id": "6" * 101}, ["checkpoint_id"]),
        ({"agent": "@"}, ["agent"]),
        ({"agent": {"name": "a"}}, ["agent", "model"]),
        ({"context": []}, ["context"]),
        ({"limits": {"max_steps": 1}}, ["limits"]),
        ({"metadata": {}}, ["metadata"]),
    ],
)
async def test_a_bad_field_is_named(
    client: httpx.AsyncClient, forks: Forks, change: dict[str, Any], loc: list[str | int]
) -> None:
    answer = await client.post(PATH, json=change)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", *loc]]
    assert forks.commands == []
