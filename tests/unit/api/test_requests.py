from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings
from app.engine.messages import Message, Role
from app.engine.ownership import Created
from app.engine.records import OnBusyThread, OnDisconnect
from app.services.agents import AgentRecord, PutAgent
from app.services.runs import CreatedMany
from tests.unit.api.conftest import StubServices
from tests.unit.api.records import MORNING, RUN_ID, a_finished_run, a_run


class Runs:
    """Creates nothing and notes what was asked for."""

    def __init__(self) -> None:
        self.commands: list[Any] = []
        self.keys: list[Any] = []
        self.replayed = False
        self.waited_s = 0.0
        self.limits: Any = None

    def stays(self) -> None:
        """This replica does not stop."""

    async def create(self, command: Any, key: Any) -> Created:
        self.commands.append(command)
        self.keys.append(key)
        return Created(a_run(), replayed=self.replayed)

    async def create_many(self, commands: Any, key: Any) -> CreatedMany:
        self.commands += commands
        self.keys.append(key)
        return CreatedMany([a_run() for _ in commands], self.replayed)

    async def wait(self, run_id: str, timeout_s: float, **_: Any) -> Any:
        self.waited_s = timeout_s
        return a_finished_run(run_id=run_id)

    async def resume(self, run_id: str, limits: Any) -> Any:
        self.limits = limits
        return a_run(run_id=run_id)


@pytest.fixture
def runs(services: StubServices) -> Runs:
    services.runs = Runs()

    class Streams:
        async def open_run(self, run_id: str, after: int, **_: Any) -> Any:
            async def nothing() -> Any:
                return
                yield

            return nothing()

    services.streams = Streams()
    return services.runs


_MINIMAL = {"agent": "helper", "input": "hello"}


async def test_a_run_is_created_with_a_place_to_look_for_it(
    client: httpx.AsyncClient, runs: Runs, check: Callable[[str, object], None]
) -> None:
    answer = await client.post("/runs", json=_MINIMAL)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/runs/{RUN_ID}")
    assert "idempotency-replayed" not in answer.headers
    check("Run", answer.json())
    command = runs.commands[0]
    assert (command.agent, command.input) == ("helper", (Message(Role.USER, "hello"),))
    assert (command.thread_id, command.start_after, runs.keys) == (None, None, [None])
    assert command.overrides == AgentOverrides()  # the agent's own interaction_mode counts


async def test_everything_that_a_request_says_reaches_the_service(client: httpx.AsyncClient, runs: Runs) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    body = {
        "agent": {"name": "inline", "model": "demo/echo", "limits": {"max_steps": 9}},
        "input": [{"role": "system", "content": "be kind"}, {"role": "user", "content": parts}],
        "thread_id": "customer-42",
        "context": {"user": {"name": "Ann"}},
        "metadata": {"team": "a"},
        "limits": {"max_steps": 3, "max_wall_time_s": 1.5, "max_subagent_depth": 1},
        "model": "demo/other",
        "instructions": "",
        "tools": [],
        "model_settings": {"temperature": 0},
        "on_busy_thread": "reject",
        "interaction_mode": "external",
        "on_disconnect": "cancel",
        "start_after": "2026-01-31T09:00:00+01:00",
        "user_id": "u",
    }
    assert (await client.post("/runs", json=body)).status_code == 202
    command = runs.commands[0]
    assert isinstance(command.agent, AgentDefinition)
    assert command.agent.limits.max_steps == 9
    assert command.input == (Message(Role.SYSTEM, "be kind"), Message(Role.USER, parts))
    assert (command.thread_id, command.context) == ("customer-42", {"user": {"name": "Ann"}})
    assert (command.metadata, command.user_id) == ({"team": "a"}, "u")
    overrides = command.overrides
    assert (overrides.model, overrides.instructions, overrides.tools) == ("demo/other", "", [])
    assert (overrides.limits.max_steps, overrides.model_settings.temperature) == (3, 0)
    assert (overrides.limits.max_subagent_depth, overrides.interaction_mode) == (1, "external")
    assert (command.on_busy_thread, command.on_disconnect) == (OnBusyThread.REJECT, OnDisconnect.CANCEL)
    assert command.start_after.isoformat() == "2026-01-31T08:00:00+00:00"


def _with_image(url: str) -> Any:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/a.png?b#c", "data:image/svg+xml;base64,AAA=", "data:image/png;base64,AAAA"]
)
async def test_an_image_is_a_web_address_or_the_image_itself(client: httpx.AsyncClient, runs: Runs, url: str) -> None:
    assert (await client.post("/runs", json={**_MINIMAL, "input": _with_image(url)})).status_code == 202
    assert runs.commands[0].input[0].content[0]["image_url"]["url"] == url


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "",
        "ftp://x/y",
        "data:text/html;base64,AAAA",
        "data:image/png,x",
        "https://",
        "gs://b/o",
        "data:image/png;base64,!!",
        "https://x/a b",
        "javascript:1",
    ],
)
async def test_any_other_url_of_an_image_is_refused_by_its_field(
    client: httpx.AsyncClient, runs: Runs, url: str
) -> None:
    answer = await client.post("/runs", json={**_MINIMAL, "input": _with_image(url)})
    assert answer.status_code == 422
    error = answer.json()["errors"][0]
    assert error["loc"][-2:] == ["image_url", "url"], error
    assert "should be an https:, http: or data:image/...;base64, URL" in str(error)
    assert not runs.commands


@pytest.mark.parametrize("path", ["/runs", "/runs/wait", "/runs/stream"])
@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"agent": None}, ["agent"]),
        ({"agent": 5}, ["agent"]),
        ({"agent": "no agent"}, ["agent"]),
        ({"agent": "helper@latest"}, ["agent"]),
        ({"agent": {"name": "a"}}, ["agent", "model"]),
        ({"agent": {"name": "a", "model": "m", "subagents": ["b", "b"]}}, ["agent", "subagents"]),
        ({"agent": {"name": "a", "model": "m", "quorum": 2}}, ["agent", "quorum"]),
        ({"agent": {"name": "a", "model": "m", "response_schema": []}}, ["agent", "response_schema"]),
        ({"agent": {"name": "a", "model": "m", "llm_failure_policy": "x"}}, ["agent", "llm_failure_policy"]),
        ({"input": 5}, ["input"]),
        ({"input": []}, ["input"]),
        ({"input": {"role": "user", "content": "x"}}, ["input"]),
        ({"input": [{"role": "assistant", "content": "x"}]}, ["input", 0, "role"]),
        ({"input": [{"role": "user"}]}, ["input", 0, "content"]),
        ({"input": [{"role": "user", "content": []}]}, ["input", 0, "content"]),
        ({"input": [{"role": "user", "content": [{"type": "audio"}]}]}, ["input", 0, "content", 0]),
        ({"input": [{"role": "user", "content": [{"type": "text"}]}]}, ["input", 0, "content", 0, "text"]),
        ({"thread_id": ""}, ["thread_id"]),
        ({"thread_id": "a/b"}, ["thread_id"]),
        ({"thread_id": "a\n"}, ["thread_id"]),
        ({"context": []}, ["context"]),
        ({"metadata": {"a": 1}}, ["metadata", "a"]),
        ({"metadata": {str(n): "" for n in range(33)}}, ["metadata"]),
        ({"limits": {"max_steps": 0}}, ["limits", "max_steps"]),
        ({"limits": {"max_steps": "3"}}, ["limits", "max_steps"]),
        ({"limits": {"max_steps": True}}, ["limits", "max_steps"]),
        ({"limits": {"max_steps": 2**60}}, ["limits", "max_steps"]),
        ({"limits": {"max_subagent_depth": 0}}, ["limits", "max_subagent_depth"]),
        ({"model": ""}, ["model"]),
        ({"tools": ["a b"]}, ["tools", 0]),
        ({"model_settings": {"temperature": "hot"}}, ["model_settings", "temperature"]),
        ({"model_settings": {"seed": 2**63 - 1, "stop": 5}}, ["model_settings", "stop"]),
        ({"on_busy_thread": "wait"}, ["on_busy_thread"]),
        ({"interaction_mode": "both"}, ["interaction_mode"]),
        ({"on_disconnect": "x"}, ["on_disconnect"]),
        ({"start_after": "2026-01-31T08:00:00"}, ["start_after"]),
        ({"start_after": 5}, ["start_after"]),
        ({"start_after": "5"}, ["start_after"]),
        ({"start_after": "9999-12-31T23:59:59-14:00"}, ["start_after"]),
        ({"response_schema": "object"}, ["response_schema"]),
        ({"user_id": 5}, ["user_id"]),
    ],
)
async def test_a_bad_field_is_named(
    client: httpx.AsyncClient, runs: Runs, path: str, change: dict[str, Any], loc: list[str | int]
) -> None:
    answer = await client.post(path, json={**_MINIMAL, **change})
    assert answer.status_code == 422
    assert ["body", *loc] in [error["loc"] for error in answer.json()["errors"]], answer.text
    assert runs.commands == []


async def test_every_bad_field_is_named_at_once(client: httpx.AsyncClient, runs: Runs) -> None:
    answer = await client.post("/runs", json={"inputs": "x", "limits": {"max_steps": 0}})
    locs = [error["loc"] for error in answer.json()["errors"]]
    assert sorted(map(str, locs)) == sorted(
        map(str, [["body", "agent"], ["body", "input"], ["body", "inputs"], ["body", "limits", "max_steps"]])
    )


@pytest.mark.parametrize("body", ["[]", "null", "5", '"text"'])
async def test_a_body_is_an_object(client: httpx.AsyncClient, runs: Runs, body: str) -> None:
    answer = await client.post("/runs", content=body)
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["body"])


async def test_the_three_ways_to_create_a_run_share_their_keys(client: httpx.AsyncClient, runs: Runs) -> None:
    header = {"Idempotency-Key": "k"}
    await client.post("/runs", content=b'{"agent": "helper", "input": "hello"}', headers=header)
    await client.post("/runs/wait", content=b'{"input": "hello", "agent": "helper"}', headers=header)
    await client.post("/runs/stream", json=_MINIMAL, headers=header)
    await client.post("/runs", json={**_MINIMAL, "user_id": "u"}, headers=header)
    await client.post("/runs/batch", json={"items": [_MINIMAL]}, headers=header)
    hashes = [key.request_hash for key in runs.keys]
    assert {key.key for key in runs.keys} == {"k"}
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes)) == 3


async def test_a_replay_says_so(client: httpx.AsyncClient, runs: Runs) -> None:
    runs.replayed = True
    header = {"Idempotency-Key": "k"}
    for path, body in (
        ("/runs", _MINIMAL),
        ("/runs/wait", _MINIMAL),
        ("/runs/stream", _MINIMAL),
        ("/runs/batch", {"items": [_MINIMAL]}),
    ):
        answer = await client.post(path, json=body, headers=header)
        assert answer.headers["idempotency-replayed"] == "true", path


async def test_a_batch_has_1_to_100_runs(
    client: httpx.AsyncClient, runs: Runs, check: Callable[[str, object], None]
) -> None:
    answer = await client.post("/runs/batch", json={"items": [_MINIMAL] * 3})
    assert answer.status_code == 202
    check("RunsCreated", answer.json())
    assert len(runs.commands) == 3
    for items in ([], [_MINIMAL] * 101, [{**_MINIMAL, "x": 1}]):
        assert (await client.post("/runs/batch", json={"items": items})).status_code == 422
    assert len(runs.commands) == 3


async def test_a_wait_is_300_seconds_or_as_asked(client: httpx.AsyncClient, runs: Runs) -> None:
    answer = await client.post("/runs/wait", json=_MINIMAL)
    assert (answer.status_code, answer.json()["status"], runs.waited_s) == (200, "completed", 300)
    await client.post("/runs/wait?timeout_s=0.5", json=_MINIMAL)
    assert runs.waited_s == 0.5
    await client.get(f"/runs/{RUN_ID}/wait")
    assert runs.waited_s == 30


async def test_resume_takes_limits_or_nothing(client: httpx.AsyncClient, runs: Runs) -> None:
    assert (await client.post("/runs/r/resume")).status_code == 200
    assert not runs.limits
    await client.post("/runs/r/resume", json={"limits": {"max_steps": 40}})
    assert runs.limits.max_steps == 40


async def test_an_agent_may_repeat_the_name_in_its_path_but_no_other(
    client: httpx.AsyncClient, services: StubServices
) -> None:
    class Agents:
        async def put(self, name: str, settings: Any) -> Any:
            raise RuntimeError((name, settings.model))

    services.agents = Agents()
    assert (await client.put("/agents/a", json={"name": "a", "model": "m"})).status_code == 500
    assert (await client.put("/agents/a", json={"name": "b", "model": "m"})).status_code == 422
    assert (await client.put("/agents/a", json={})).status_code == 422


_DEFINED = {"type": "caller", "name": "ask"}
_URL = "https://api.example.com/{id}"


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"quorum": 2}, ["quorum"]),
        ({"join_policy": "quorum"}, ["quorum"]),
        ({"join_policy": "most"}, ["join_policy"]),
        ({"subagents": ["1"]}, ["subagents", 0]),
        ({"subagent_timeout_s": 0}, ["subagent_timeout_s"]),
        ({"tools": ["ask"], "tool_definitions": [_DEFINED]}, ["tool_definitions"]),
        ({"tool_definitions": [{"type": "caller"}]}, ["tool_definitions", 0, "name"]),
        ({"tool_definitions": [{"name": "x"}]}, ["tool_definitions", 0]),
        ({"tool_definitions": [{**_DEFINED, "ttl_s": 0}]}, ["tool_definitions", 0, "ttl_s"]),
        ({"tool_definitions": [{**_DEFINED, "parameters": {}}]}, ["tool_definitions", 0, "parameters"]),
        ({"tool_definitions": [{"type": "http", "name": "x", "url": "ftp://a"}]}, ["tool_definitions", 0, "url"]),
        ({"tool_definitions": [{"type": "http", "name": "x", "url": _URL}]}, ["tool_definitions", 0, "url"]),
        ({"policy": {"rules": [{"rule_id": "r"}]}}, ["policy", "rules", 0, "action"]),
        (
            {
                "policy": {
                    "rules": [
                        {
                            "rule_id": "r",
                            "action": "deny",
                            "subjects": ["tool_call"],
                            "condition": {"arguments": [{"path": "nowhere", "op": "eq", "value": 1}]},
                        }
                    ]
                }
            },
            ["policy", "rules", 0, "condition", "arguments", 0, "path"],
        ),
        ({"approval_fallback": "maybe"}, ["approval_fallback"]),
        ({"input_fallback": "approve"}, ["input_fallback"]),
        ({"input_fallback": {}}, ["input_fallback", "value"]),
        ({"interaction_mode": "none"}, ["interaction_mode"]),
        ({"mcp_servers": ["a b"]}, ["mcp_servers", 0]),
        ({"sandbox": ""}, ["sandbox"]),
    ],
)
async def test_a_bad_field_of_an_agent_is_named(
    client: httpx.AsyncClient, runs: Runs, fields: dict[str, Any], loc: list[str | int]
) -> None:
    stored = await client.put("/agents/a", json={"model": "m", **fields})
    inline = await client.post("/runs", json={**_MINIMAL, "agent": {"name": "a", "model": "m", **fields}})
    for answer, place in ((stored, ["body"]), (inline, ["body", "agent"])):
        assert answer.status_code == 422
        assert [*place, *loc] in [error["loc"] for error in answer.json()["errors"]], answer.text


async def test_an_agent_may_say_all_of_this(client: httpx.AsyncClient, services: StubServices) -> None:
    body = {
        "model": "demo/echo",
        "tool_definitions": [{**_DEFINED, "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}],
        "mcp_servers": ["files"],
        "sandbox": "strict",
        "subagents": ["researcher", "writer"],
        "join_policy": "quorum",
        "quorum": 1,
        "inherit_context_keys": ["user"],
        "policy": {
            "rules": [
                {
                    "rule_id": "big",
                    "action": "request_approval",
                    "subjects": ["tool_call", "subagent_call"],
                    "condition": {"tool_name": "re*", "arguments": [{"path": "$.amount", "op": "gt", "value": 100}]},
                    "arguments": {"dry_run": True},
                }
            ]
        },
        "limits": {"max_subagent_depth": 2, "max_subagent_fanout": 3},
        "interaction_mode": "external",
        "approval_fallback": "approve",
        "input_fallback": {"value": None},
    }
    saved: list[AgentSettings] = []

    class Agents:
        async def put(self, name: str, settings: AgentSettings) -> PutAgent:
            saved.append(settings)
            definition = AgentDefinition.model_validate({**settings.model_dump(), "name": name})
            return PutAgent(AgentRecord(name, 1, "api", MORNING, definition), created=True, changed=True)

    services.agents = Agents()
    answer = await client.put("/agents/a", json=body)
    assert answer.status_code == 201, answer.text
    shown = answer.json()["definition"]
    assert shown["policy"]["rules"][0]["condition"]["arguments"] == body["policy"]["rules"][0]["condition"]["arguments"]
    assert (shown["input_fallback"], shown["quorum"]) == ({"value": None}, 1)
    again = await client.put("/agents/a", json={key: value for key, value in shown.items() if key != "name"})
    assert again.status_code == 201, again.text
    assert saved[0] == saved[1]
