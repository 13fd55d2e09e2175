"""The sessions of one MCP server, and its tools, over sessions that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.tools.errors import CallError
from app.tools.mcp_servers import McpState
from app.tools.mcp_servers.declaration import StdioDeclaration
from app.tools.mcp_servers.remote import (
    AnswerMissing,
    NotConnected,
    NotSent,
    Progress,
    RemoteTool,
    Session,
    SessionEvents,
)
from app.tools.mcp_servers.server import McpServer
from tests.unit.tools.conftest import Invocation

ECHO = RemoteTool("echo", "Say it again.", {"type": "object", "properties": {}})
OTHER = RemoteTool("other", "", {"type": "object", "properties": {}})

Behaviour = Callable[[], Awaitable[object]]


class ScriptedSession:
    """A `Session` whose calls end as its script says."""

    def __init__(self, script: Script, events: SessionEvents) -> None:
        self.script = script
        self.events = events
        self.lost: str | None = None
        self.calls = 0
        self.closed = False

    async def connect(self) -> list[RemoteTool]:
        await self.script.opening.wait()
        if self.script.refuses:
            self.lose(self.script.refuses)
            raise NotConnected(self.script.refuses)
        if self.script.announces_first:
            self.events.tools_changed(self)
        return list(self.script.tools)

    async def tools(self) -> list[RemoteTool]:
        self.script.listings += 1
        if self.script.mute:
            raise AnswerMissing("it does not tell its tools")
        return list(self.script.tools)

    async def call(self, tool: str, arguments: Mapping[str, Any], key: str, on_progress: Progress) -> object:
        self.calls += 1
        return await self.script.behaviour()

    async def answers(self) -> bool:
        return self.script.alive

    def lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self.events.session_ended(self)

    async def aclose(self) -> None:
        self.closed = True
        self.lose("it was closed")


async def at_once() -> object:
    return "done"


class Script:
    """Implements `Connector`; says what its sessions do."""

    def __init__(self) -> None:
        self.sessions: list[ScriptedSession] = []
        self.opening = asyncio.Event()
        self.opening.set()
        self.tools = [ECHO]
        self.behaviour: Behaviour = at_once
        self.refuses = ""
        self.announces_first = False
        self.alive = True
        self.mute = False
        self.failures = 0
        self.listings = 0

    async def open(self, events: SessionEvents) -> Session:
        session = ScriptedSession(self, events)
        self.sessions.append(session)
        return session

    def failed(self) -> None:
        self.failures += 1


@pytest.fixture
def script() -> Script:
    return Script()


@asynccontextmanager
async def started(script: Script, *, refresh_s: float = 60, **bounds: Any) -> AsyncIterator[McpServer]:
    server = McpServer("box", StdioDeclaration(command="x", **bounds), script, refresh_s=refresh_s)
    server.start()
    try:
        yield server
    finally:
        await server.aclose()
    assert all(session.closed or session.lost for session in script.sessions)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


Call = Callable[[McpServer], Awaitable[object]]


@pytest.fixture
def call(invocation: Invocation) -> Call:
    async def make(server: McpServer) -> object:
        return await server.tools["box__echo"].call({}, invocation("box__echo"))

    return make


async def test_a_session_works_on_one_call_at_a_time(script: Script, call: Call) -> None:
    under_way = most = 0

    async def counted() -> object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return "done"

    script.behaviour = counted
    async with started(script, max_sessions=3) as server:
        await server.pool.tried()
        await asyncio.gather(*(call(server) for _ in range(20)))
    assert most <= 3
    assert len(script.sessions) <= 3
    assert sum(session.calls for session in script.sessions) == 20


async def test_no_more_sessions_are_opened_than_calls_want(script: Script, call: Call) -> None:
    async with started(script, max_sessions=8) as server:
        await server.pool.tried()
        for _ in range(10):
            await call(server)
        assert len(script.sessions) == 1


async def test_a_call_that_finds_no_free_session_in_its_time_was_never_sent(script: Script, call: Call) -> None:
    blocked = asyncio.Event()

    async def block() -> object:
        return await blocked.wait()

    script.behaviour = block
    async with started(script, max_sessions=1) as server:
        await server.pool.tried()
        first = asyncio.ensure_future(call(server))
        await until(lambda: script.sessions[0].calls)
        with pytest.raises(CallError, match="the MCP server 'box' was busy all the time; it was not called"):
            await server.pool.lend(asyncio.get_running_loop().time() + 0.05)
        blocked.set()
        assert await first is True
        assert script.sessions[0].calls == 1


async def test_a_caller_that_gives_up_as_it_gets_a_session_passes_it_on(script: Script) -> None:
    async with started(script, max_sessions=1) as server:
        await server.pool.tried()
        deadline = asyncio.get_running_loop().time() + 5
        session = await server.pool.lend(deadline)
        early, late, last = (asyncio.ensure_future(server.pool.lend(deadline)) for _ in range(3))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait({late})
        server.pool.take_back(session)
        early.cancel()  # which has been handed the session, and does not know it yet
        assert await last is session
        assert early.cancelled()


async def test_a_session_is_kept_after_a_call_that_was_given_up_if_its_server_answers(
    script: Script, call: Call
) -> None:
    async def hang() -> object:
        return await asyncio.Event().wait()

    for script.alive, sessions in ((True, 1), (False, 2)):
        script.behaviour = hang
        async with started(script, max_sessions=1, timeout_s=0.05) as server:
            await server.pool.tried()
            before = len(script.sessions)
            with pytest.raises(CallError, match="timed out"):
                await call(server)
            script.behaviour = at_once
            lent = await server.pool.lend(asyncio.get_running_loop().time() + 5)
            assert len(script.sessions) - before == sessions - 1
            server.pool.take_back(lent)


async def test_a_call_that_was_not_sent_is_sent_once_more(script: Script, call: Call) -> None:
    async def forget() -> object:
        script.behaviour = at_once
        raise NotSent("no such session")

    script.behaviour = forget
    async with started(script) as server:
        await server.pool.tried()
        assert await call(server) == "done"

    async def always_forget() -> object:
        raise NotSent("no such session")

    script.behaviour = always_forget
    async with started(script) as server:
        await server.pool.tried()
        with pytest.raises(CallError, match="it did not run the call"):
            await call(server)


async def test_a_call_whose_answer_is_missing_is_not_sent_again(script: Script, call: Call) -> None:
    async def vanish() -> object:
        raise AnswerMissing("it ended with status 1")

    script.behaviour = vanish
    async with started(script) as server:
        await server.pool.tried()
        with pytest.raises(CallError, match="it ended with status 1; whether the call took effect is unknown"):
            await call(server)
        assert sum(session.calls for session in script.sessions) == 1


async def test_calls_of_a_server_that_cannot_be_reached_fail_after_one_more_attempt(script: Script, call: Call) -> None:
    async with started(script, timeout_s=30) as server:
        await server.pool.tried()
        script.refuses = "no such host"
        script.sessions[0].lose("it ended")
        attempts = len(script.sessions)
        async with asyncio.timeout(5):
            with pytest.raises(CallError, match="is not available right now; it was not called"):
                await call(server)
        assert len(script.sessions) == attempts + 1
        assert server.pool.state is McpState.UNAVAILABLE
        assert server.pool.reason == "no such host"
        assert script.failures == 1
        assert "box__echo" in server.tools


async def test_a_server_that_comes_back_is_connected_to_again(script: Script, call: Call) -> None:
    script.refuses = "not yet"
    async with started(script) as server:
        await server.pool.tried()
        assert server.pool.state is McpState.UNAVAILABLE
        script.refuses = ""
        await until(lambda: server.pool.state is McpState.READY)
        assert server.pool.reason is None
        assert await call(server) == "done"


async def test_what_is_announced_before_the_first_list_does_not_hide_it(script: Script) -> None:
    script.announces_first = True
    async with started(script) as server:
        await server.pool.tried()
        assert list(server.tools) == ["box__echo"]


async def test_a_further_session_does_not_undo_what_another_one_announced(script: Script) -> None:
    async with started(script, max_sessions=2) as server:
        await server.pool.tried()
        first = await server.pool.lend(asyncio.get_running_loop().time() + 1)
        script.tools = [OTHER]
        server.pool.tools_changed(first)
        await until(lambda: list(server.tools) == ["box__other"])
        script.tools = [ECHO]
        second = await server.pool.lend(asyncio.get_running_loop().time() + 5)
        assert second is not first
        assert list(server.tools) == ["box__other"]


async def test_an_idle_session_that_does_not_tell_its_tools_is_replaced(script: Script) -> None:
    async with started(script, refresh_s=0.05) as server:
        await server.pool.tried()
        script.mute = True
        await until(lambda: script.sessions[0].lost)
        script.mute = False
        await until(lambda: len(script.sessions) > 1 and server.pool.state is McpState.READY)


async def test_a_session_that_works_is_not_blamed_for_not_telling_its_tools(script: Script) -> None:
    async with started(script, refresh_s=0.05) as server:
        await server.pool.tried()
        lent = await server.pool.lend(asyncio.get_running_loop().time() + 1)
        script.mute = True
        listings = script.listings
        await until(lambda: script.listings > listings)
        assert lent.lost is None


async def test_calls_that_wait_at_the_end_fail_at_once(script: Script) -> None:
    script.opening.clear()
    server = McpServer("box", StdioDeclaration(command="x"), script)
    server.start()
    waiting = asyncio.ensure_future(server.pool.lend(asyncio.get_running_loop().time() + 30))
    await until(lambda: script.sessions)
    async with asyncio.timeout(5):
        await server.aclose()
        with pytest.raises(CallError, match="is not available"):
            await waiting
    with pytest.raises(CallError, match="is not available"):
        await server.pool.lend(asyncio.get_running_loop().time() + 30)
    assert server.pool.state is McpState.CLOSED


async def test_a_server_that_was_never_started_can_be_ended(script: Script) -> None:
    server = McpServer("box", StdioDeclaration(command="x"), script)
    assert server.pool.state is McpState.CONNECTING
    await server.aclose()
