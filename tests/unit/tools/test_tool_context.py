"""What a tool knows of its call: secrets, its progress, and putting off its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from app.engine.tools import Deferral, ToolInvocation
from app.tools import ToolContext, ToolDefinitionError, ToolRegistry, tool
from app.tools.secrets import Secret, Secrets
from tests.tool_calls import ended

Invocation = Callable[..., ToolInvocation]
Registered = Callable[..., ToolRegistry]


class TestSecrets:
    secrets = Secrets({"API_KEY": Secret("s3cr3t-value"), "OTHER": Secret("an0ther-value")})

    async def test_are_those_that_the_tool_declared(self, registered: Registered, invocation: Invocation) -> None:
        seen: list[dict[str, str]] = []

        @tool(secrets=["API_KEY"])
        def fetch(ctx: ToolContext) -> str:
            seen.append(dict(ctx.secrets))
            assert "s3cr3t" not in repr(ctx)
            return "fetched"

        await ended(registered(fetch, secrets=self.secrets), invocation("fetch"))
        assert seen == [{"API_KEY": "s3cr3t-value"}]

    async def test_one_that_is_missing_fails_the_call_before_the_handler(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        ran: list[str] = []

        @tool(secrets=["API_KEY"])
        def fetch(ctx: ToolContext) -> None:
            ran.append("fetch")

        with capture_logs() as logs:
            registry = registered(fetch)
        assert [(log["event"], log["secrets"]) for log in logs] == [("tool_secrets_missing", ["API_KEY"])]
        result = await ended(registry, invocation("fetch"))
        assert (result.error, ran) == ("there is no secret 'API_KEY'", [])

    @pytest.mark.parametrize("sanitize", [True, False])
    async def test_never_leave_by_any_way(self, sanitize: bool, registered: Registered, invocation: Invocation) -> None:
        told: list[tuple[str, Any]] = []

        @tool(secrets=["API_KEY"])
        async def tell(how: str, ctx: ToolContext) -> Any:
            secret = ctx.secrets["API_KEY"]
            ctx.emit_progress(f"with {secret}", {secret: [secret]})
            match how:
                case "text":
                    return f"{'x' * 11_990}{secret}"
                case "json":
                    return {secret: {"in": [secret, 12]}}
                case "deferral":
                    return Deferral(f"t-{secret}", f"begun with {secret}", f"ask {secret}")
                case _:
                    raise ValueError(f"{'x' * 1_980} {secret}")

        def refuse(context: ToolContext, _arguments: dict[str, Any]) -> None:
            raise ValueError(context.secrets["API_KEY"])

        @tool(secrets=["API_KEY"], prehooks=[refuse])
        async def guarded() -> None: ...

        registry = registered(tell, guarded, secrets=self.secrets)
        with capture_logs() as logs:
            outcomes = [
                await registry.invoke(
                    invocation("tell", {"how": how}, sanitize=sanitize, progress=lambda *said: told.append(said))
                )
                for how in ("text", "json", "deferral", "error")
            ]
            outcomes.append(await ended(registry, invocation("guarded", sanitize=sanitize)))
        posted = registry.result(output='{"a":"s3cr3t-value"}', error=None, output_max_chars=300, sanitize=sanitize)
        failed = registry.result(output=None, error="no: s3cr3t-value", output_max_chars=300, sanitize=sanitize)
        left = f"{outcomes} {told} {logs} {posted} {failed}"
        assert "s3cr3t" not in left
        assert left.count("[secret:API_KEY]") >= 12
        assert isinstance(outcomes[2], Deferral)

    async def test_that_is_a_number_leaves_the_record_valid_json(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        @tool
        def pin() -> Any:
            return {"pin": 123456}

        result = await ended(registered(pin, secrets=Secrets({"PIN": Secret("123456")})), invocation("pin"))
        assert result.output is not None
        assert orjson.loads(result.output) == '{"pin":[secret:PIN]}'

    def test_declared_where_nothing_can_read_them_are_refused(self) -> None:
        with pytest.raises(ToolDefinitionError, match="secrets are found in a ToolContext"):
            tool(secrets=["API_KEY"])(nothing)
        with pytest.raises(ToolDefinitionError, match="takes a list of names"):
            tool(secrets="API_KEY")(nothing)


def nothing() -> None: ...


class TestProgress:
    async def test_reaches_readers_from_any_thread_and_within_bounds(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        told: list[tuple[str, Any]] = []

        @tool
        def work(ctx: ToolContext) -> str:
            ctx.emit_progress("one")
            thread = threading.Thread(target=ctx.emit_progress, args=("two", {"done": {1, 2}}))
            thread.start()
            thread.join()
            ctx.emit_progress("\x00m" * 5_000, {"rows": ["row"] * 20_000})
            return "done"

        result = await ended(registered(work), invocation("work", progress=lambda *said: told.append(said)))
        assert result.content == "done"
        assert told[:2] == [("one", None), ("two", {"done": [1, 2]})]
        message, data = told[2]
        assert 1_900 < len(message) <= 2_000
        assert "\x00" not in message
        assert isinstance(data, str)
        assert 10_000 < len(orjson.dumps(data)) <= 16 * 1024

    async def test_of_a_tool_that_nobody_listens_to_goes_nowhere(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        @tool
        async def work(ctx: ToolContext) -> str:
            ctx.emit_progress("one", object())
            return "done"

        assert (await ended(registered(work), invocation("work"))).content == "done"


class TestDeferral:
    @pytest.fixture
    def deferred(self) -> Any:
        @tool(posthooks=[lambda _context, _value: "never"])
        async def export(ttl_s: float, ticket: str = "t-1") -> Deferral:
            return Deferral(ticket, "the export was begun", "POST the file", ttl_s)

        return export

    async def test_is_handed_on_as_it_is_and_no_posthook_sees_it(
        self, deferred: Any, registered: Registered, invocation: Invocation
    ) -> None:
        outcome = await registered(deferred).invoke(invocation("export", {"ttl_s": 60}))
        assert outcome == Deferral("t-1", "the export was begun", "POST the file", 60)

    async def test_of_a_plain_function_is_one_too(self, registered: Registered, invocation: Invocation) -> None:
        @tool
        def export() -> Deferral:
            return Deferral("t-1", "x" * 5_000)

        outcome = await registered(export).invoke(invocation("export"))
        assert isinstance(outcome, Deferral)
        assert 1_900 < len(outcome.summary) <= 2_000

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"ttl_s": 0}, "ttl_s"),
            ({"ttl_s": -1}, "ttl_s"),
            ({"ttl_s": 1e9}, "ttl_s"),
            ({"ttl_s": 60, "ticket": ""}, "ticket_id"),
            ({"ttl_s": 60, "ticket": "x" * 201}, "ticket_id"),
        ],
    )
    async def test_that_is_none_fails_the_call(
        self, arguments: Any, problem: str, deferred: Any, registered: Registered, invocation: Invocation
    ) -> None:
        result = await ended(registered(deferred), invocation("export", arguments))
        assert not result.success
        assert problem in str(result.error)
