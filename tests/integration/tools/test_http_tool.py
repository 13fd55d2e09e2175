"""HTTP tools: one call, one request, and what the model reads of the answer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.engine.effects import ToolEffect
from app.engine.tool_definitions import HttpToolDefinition
from app.engine.tools import ToolInvocation, ToolSource
from app.tools.callable_tool import CallableTool
from app.tools.errors import CallError, CallTimeoutError, EgressError, EgressRefusedError, SecretError
from app.tools.hosts import HostPatterns
from app.tools.http_tool import HttpTool
from app.tools.secrets import Secret, Secrets
from tests.integration.tools.conftest import MakeEgress, Names, Site, StartSite, answer

SECRET = "hunter2x/y"
SECRETS = Secrets({"key": Secret(SECRET, HostPatterns.parse(["127.0.0.1"]))})
AUTHORIZED = {"Authorization": "Bearer {{ secrets.key }}"}


def definition(url: str, method: str = "GET", **fields: Any) -> HttpToolDefinition:
    schema = {"type": "object", "properties": {"id": {"type": "string"}, "n": {"type": "integer", "default": 3}}}
    return HttpToolDefinition.model_validate(
        {"type": "http", "name": "orders", "method": method, "url": url, "parameters": schema, **fields}
    )


async def called(tool: CallableTool, arguments: str = "{}") -> object:
    invocation = ToolInvocation(
        run_id="run-1",
        thread_id="thread-1",
        agent_name="analyst",
        tool_call_id="call-1",
        tool_name=tool.spec.name,
        arguments=arguments,
        idempotency_key="run-1/1/0",
        context={},
        metadata={},
        allowed_tools=frozenset({tool.spec.name}),
        output_max_chars=12_000,
    )
    return await tool.call(tool.parsed(arguments), invocation)


def tool_for(there: Site, egress: MakeEgress, path: str = "/", method: str = "GET", **fields: Any) -> HttpTool:
    url = f"http://127.0.0.1:{there.port}{path}"
    return HttpTool(definition(url, method, **fields), egress("127.0.0.0/8"), SECRETS)


@pytest.mark.parametrize(
    ("method", "effect", "by_default"),
    [
        ("GET", None, ToolEffect.READ_ONLY),
        ("DELETE", None, ToolEffect.UNSAFE),
        ("POST", None, ToolEffect.UNSAFE),
        ("PUT", "idempotent", ToolEffect.IDEMPOTENT),
    ],
)
async def test_a_tool_is_what_its_definition_says(
    site: StartSite, egress: MakeEgress, method: str, effect: str | None, by_default: ToolEffect
) -> None:
    tool = tool_for(await site(answer()), egress, method=method, effect=effect, timeout_s=7, description="d")
    assert (tool.spec.name, tool.spec.description, tool.timeout_s) == ("orders", "d", 7)
    assert (tool.spec.effect, tool.spec.source) == (by_default, ToolSource.HTTP)
    assert tool.spec.parameters["properties"].keys() == {"id", "n"}


async def test_a_get_sends_its_arguments_in_the_url_and_gives_the_json(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer('{"total": 5}', content_type="application/json; charset=utf-8"))
    assert await called(tool_for(there, egress), '{"id": "a b"}') == {"total": 5}
    (received,) = there.received
    assert (received.method, received.path, received.body) == ("GET", "/?id=a%20b&n=3", b"")
    assert "idempotency-key" not in received.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_the_others_send_json_and_the_key_of_the_call(site: StartSite, egress: MakeEgress, method: str) -> None:
    there = await site(answer())
    await called(tool_for(there, egress, method=method), '{"id": "ä"}')
    (received,) = there.received
    assert (received.method, orjson.loads(received.body)) == (method, {"id": "ä", "n": 3})
    assert received.headers["content-type"] == "application/json"
    assert received.headers["idempotency-key"] == "run-1/1/0"


async def test_a_delete_sends_its_key_too_and_no_body(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer(status="204 No Content"))
    assert await called(tool_for(there, egress, "/o?x=1", "DELETE"), '{"id": "1"}') == ""
    (received,) = there.received
    assert (received.path, received.body) == ("/o?x=1&id=1&n=3", b"")
    assert received.headers["idempotency-key"] == "run-1/1/0"


@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b'{"a": [1]}', "application/json", {"a": [1]}),
        (b'{"a": 1}', "application/problem+json", {"a": 1}),
        (b'{"a": ', "application/json", '{"a": '),
        (b"[" * 5000, "application/json", "[" * 5000),
        (b'{"a": 1}', "text/plain", '{"a": 1}'),
        ("grün".encode("latin-1"), "text/plain; charset=ISO-8859-1", "grün"),
        (b"\xff", "text/plain", "�"),
        (b"a", "text/plain; charset=punycode", "a"),
        (b"\x89PNG\xff", "image/png", "[image/png, 5 bytes: not text]"),
        (b"a,b", "application/octet-stream", "a,b"),
    ],
)
async def test_the_result_is_what_json_says_or_text(
    site: StartSite, egress: MakeEgress, body: bytes, content_type: str, value: object
) -> None:
    there = await site(answer(body, content_type=content_type))
    assert await called(tool_for(there, egress)) == value


@pytest.mark.parametrize(
    "status", ["300 Multiple Choices", "304 Not Modified", "400 Bad Request", "404 Not Found", "503 X", "799 Odd"]
)
async def test_another_status_fails_the_call_with_a_bit_of_the_body(
    site: StartSite, egress: MakeEgress, status: str
) -> None:
    there = await site(answer("" if status.startswith("304") else "no\n such  order " + "x" * 5000, status))
    with pytest.raises(CallError) as error:
        await called(tool_for(there, egress))
    assert error.value.message.startswith(f"127.0.0.1 answered {status[:3]}")
    if error.value.details:
        (detail,) = error.value.details
        assert detail.startswith("no such order xxx")
        assert len(detail) == 1000
    assert len(there.received) == 1


async def test_a_secret_goes_to_its_host_and_never_to_the_model(site: StartSite, egress: MakeEgress) -> None:
    echo = orjson.dumps({"you sent": f"Bearer {SECRET}"})
    there = await site(
        {
            "/ok?n=3": answer(echo, content_type="application/json"),
            "/no?n=3": answer(b"x" * 980 + echo, "401 No", content_type="text/plain"),
        }
    )
    assert await called(tool_for(there, egress, "/ok", headers=AUTHORIZED)) == {"you sent": "Bearer [secret:key]"}
    assert there.received[0].headers["authorization"] == f"Bearer {SECRET}"
    with pytest.raises(CallError) as error:
        await called(tool_for(there, egress, "/no", headers=AUTHORIZED))
    assert "hunter" not in str(error.value.details)


async def test_a_secret_does_not_follow_a_redirect_elsewhere(site: StartSite, egress: MakeEgress) -> None:
    other = await site(answer("fine"), host="127.0.0.2")
    there = await site(answer(status="302 Found", location=f"http://127.0.0.2:{other.port}/"))
    assert await called(tool_for(there, egress, headers=AUTHORIZED | {"X-Api-Key": "plain"})) == "fine"
    assert there.received[0].headers["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in other.received[0].headers
    assert "x-api-key" not in other.received[0].headers


async def test_a_secret_of_another_host_is_not_sent_at_all(site: StartSite, egress: MakeEgress, names: Names) -> None:
    there = await site(answer())
    names.lead("a.example", "127.0.0.1")
    tool = HttpTool(definition(f"http://a.example:{there.port}/", headers=AUTHORIZED), egress("127.0.0.1"), SECRETS)
    with pytest.raises(SecretError):
        await called(tool)
    assert there.connections == 0


async def test_redirects_stay_on_the_allowed_hosts_where_there_are_any(site: StartSite, egress: MakeEgress) -> None:
    other = await site(answer("fine"), host="127.0.0.2")
    there = await site(answer(status="302 Found", location=f"http://127.0.0.2:{other.port}/"))
    tool = HttpTool(
        definition(f"http://127.0.0.1:{there.port}/"),
        egress("127.0.0.0/8"),
        SECRETS,
        redirect_hosts=HostPatterns.parse(["127.0.0.1"]),
    )
    with pytest.raises(EgressRefusedError):
        await called(tool)
    assert other.connections == 0


async def test_a_call_ends_with_its_time_and_is_not_sent_again(site: StartSite, egress: MakeEgress) -> None:
    there = await site(b"")  # which is no answer
    with pytest.raises(CallTimeoutError):
        await called(tool_for(there, egress, method="POST", timeout_s=0.2))
    assert len(there.received) == 1


async def test_private_addresses_are_refused(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer("secret"))
    with pytest.raises(EgressError):
        await called(HttpTool(definition(f"http://127.0.0.1:{there.port}/"), egress(), SECRETS))
    assert there.connections == 0
