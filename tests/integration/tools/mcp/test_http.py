"""Servers behind a URL, by the official SDK and by hand."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from aiohttp import web

from app.tools.errors import CallTimeoutError, HandlerError
from app.tools.mcp_servers import McpState
from tests.integration.tools.mcp.conftest import Playgrounds, until, until_ready

StartServer = Callable[..., str]
PLAIN = {"type": "object", "properties": {}}


async def test_a_server_behind_a_url_is_as_good_as_a_program(playground: Playgrounds, http_server: StartServer) -> None:
    async with playground(far={"url": http_server()}) as play:
        assert await play.call("far__add", left=1) == {"sum": 2}
        assert await play.call("far__echo", text="hello") == "hello"
        assert len(await play.call("far__mixed")) == 5
        with pytest.raises(HandlerError, match="fail"):
            await play.call("far__fail", text="no such order")
        assert await play.call("far__progress", steps=2) == "done"
        assert [message for message, _ in play.said] == ["step 1", "step 2"]


async def test_what_a_server_behind_a_url_changes_is_changed_here(
    playground: Playgrounds, http_server: StartServer
) -> None:
    async with playground(far={"url": http_server()}) as play:
        await play.call("far__change", add=["newcomer"], remove=["fail"])
        await until(lambda: play.servers.find("far__newcomer") is not None)
        assert play.servers.find("far__fail") is None


async def test_a_call_over_http_that_takes_too_long_is_cancelled(
    playground: Playgrounds, http_server: StartServer
) -> None:
    async with playground(far={"url": http_server(), "timeout_s": 1}) as play:
        with pytest.raises(CallTimeoutError):
            await play.call("far__wait")
        async with asyncio.timeout(10):
            while await play.call("far__cancelled") != {"cancelled": 1}:
                await asyncio.sleep(0.05)


async def test_a_server_that_is_killed_fails_its_call_and_is_found_again(
    playground: Playgrounds, http_server: StartServer
) -> None:
    url = http_server()
    async with playground(far={"url": url}) as play:
        assert "gave no answer" in await play.refusal("far__die")
        await until(lambda: play.servers.state("far").state is McpState.UNAVAILABLE)
        assert "not available" in await play.refusal("far__echo", text="hi")
        http_server(urlsplit(url).port)
        await until_ready(play.servers, "far")
        assert await play.call("far__echo", text="again") == "again"


async def test_a_large_answer_ends_the_session(playground: Playgrounds, http_server: StartServer) -> None:
    async with playground(far={"url": http_server(), "max_output_bytes": 1024}) as play:
        assert "whether the call took effect is unknown" in await play.refusal("far__long_text", size=1_000_000)
        assert await play.call("far__echo", text="again") == "again"


async def test_an_address_inside_is_refused_unless_the_operator_opens_it(
    playground: Playgrounds, http_server: StartServer
) -> None:
    url = http_server()
    by_name = url.replace("127.0.0.1", "inside.example")
    async with playground(allow=(), literal={"url": url}, named={"url": by_name}) as play:
        assert "is not open to tools" in (play.servers.state("literal").reason or "")
        assert "is not open to tools" in (play.servers.state("named").reason or "")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HandMade:
    """A server of protocol 2025-11-25 that answers with plain JSON.

    Args:
        answer: to each call of its one tool, `act`.
    """

    def __init__(self) -> None:
        self.answer: Handler | None = None
        self.seen: list[web.Request] = []
        self.session = "session-1"
        self.calls = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if request.method != "POST":
            return web.Response(status=405 if request.method == "GET" else 200)
        message = await request.json()
        method, identifier = message["method"], message.get("id")
        if method == "initialize":
            about = {"serverInfo": {"name": "by hand", "version": "1"}, "capabilities": {"tools": {}}}
            result = {"protocolVersion": "2025-11-25", **about}
            return _json(identifier, result, headers={"Mcp-Session-Id": self.session})
        if method == "server/discover":
            return web.Response(status=400)
        if request.headers.get("Mcp-Session-Id") != self.session:
            return web.Response(status=404)
        match method:
            case "tools/list":
                return _json(identifier, {"tools": [{"name": "act", "inputSchema": PLAIN}]})
            case "tools/call":
                self.calls += 1
                if self.answer is not None:
                    return await self.answer(request)
                return _json(identifier, {"content": [{"type": "text", "text": "done"}]})
            case "ping":
                return _json(identifier, {})
            case _:
                return web.Response(status=202)


def _json(identifier: object, result: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": identifier, "result": result}, headers=headers)


@asynccontextmanager
async def served(tls: ssl.SSLContext | None = None) -> AsyncIterator[HandMade]:
    server = HandMade()
    app = web.Application()
    app.router.add_route("*", "/mcp", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"https://inside.example:{port}/mcp" if tls else f"http://127.0.0.1:{port}/mcp"
    yield server
    await runner.cleanup()


@pytest.fixture
async def by_hand() -> AsyncIterator[HandMade]:
    async with served() as server:
        yield server


async def test_a_session_that_the_server_forgot_is_replaced_and_the_call_made(
    playground: Playgrounds, by_hand: HandMade
) -> None:
    together = asyncio.Barrier(2)

    async def meet(request: web.Request) -> web.StreamResponse:
        await together.wait()
        return _json((await request.json())["id"], {"content": []})

    async with playground(far={"url": by_hand.url, "max_sessions": 2}) as play:
        by_hand.answer = meet
        await asyncio.gather(play.call("far__act"), play.call("far__act"))
        by_hand.answer = None
        by_hand.session = "session-2"  # and with the old name, both of ours are gone
        assert await play.call("far__act") == "done"
        assert by_hand.calls == 3


async def test_an_answer_without_end_is_not_read_to_its_end(playground: Playgrounds, by_hand: HandMade) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    async with playground(far={"url": by_hand.url, "max_output_bytes": 1024}) as play:
        by_hand.answer = endless
        assert "it sent a message of more than 66560 bytes" in await play.refusal("far__act")


@pytest.mark.parametrize("piece", [b": still here\n\n", b"data: ", b'data: {"jsonrpc":"2.0","method":"x"}\n\n'])
async def test_events_without_end_end_the_session(playground: Playgrounds, by_hand: HandMade, piece: bytes) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(piece * 100)

    async with playground(far={"url": by_hand.url, "max_output_bytes": 1024}) as play:
        by_hand.answer = endless
        assert "whether the call took effect is unknown" in await play.refusal("far__act")
        by_hand.answer = None
        assert await play.call("far__act") == "done"


async def test_a_compressed_answer_is_refused(playground: Playgrounds, by_hand: HandMade) -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        body = gzip.compress(b" " * 10_000_000)
        return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})

    async with playground(far={"url": by_hand.url}) as play:
        by_hand.answer = bomb
        assert "compressed an answer" in await play.refusal("far__act")


@pytest.mark.parametrize("location", ["http://127.0.0.2:{port}/mcp", "http://inside.example:{port}/mcp"])
async def test_a_redirect_elsewhere_is_not_followed(playground: Playgrounds, by_hand: HandMade, location: str) -> None:
    async def away(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect(location.format(port=urlsplit(by_hand.url).port))

    async with playground(far={"url": by_hand.url}, allow=["127.0.0.0/8"]) as play:
        by_hand.answer = away
        assert "not followed" in await play.refusal("far__act")
        assert {request.host for request in by_hand.seen} == {urlsplit(by_hand.url).netloc}


async def test_a_redirect_within_the_server_is_followed_and_checked_again(
    playground: Playgrounds, by_hand: HandMade
) -> None:
    redirected = False

    async def once(request: web.Request) -> web.StreamResponse:
        nonlocal redirected
        if not redirected:
            redirected = True
            raise web.HTTPTemporaryRedirect("/mcp")
        return _json((await request.json())["id"], {"content": []})

    async with playground(far={"url": by_hand.url}) as play:
        by_hand.answer = once
        assert await play.call("far__act") == ""


async def test_no_cookies_are_kept(playground: Playgrounds, by_hand: HandMade) -> None:
    async def sweet(request: web.Request) -> web.StreamResponse:
        response = _json((await request.json())["id"], {"content": []})
        response.set_cookie("taste", "sweet")
        return response

    async with playground(far={"url": by_hand.url}) as play:
        by_hand.answer = sweet
        await play.call("far__act")
        await play.call("far__act")
        assert "Cookie" not in by_hand.seen[-1].headers


async def test_a_secret_goes_to_its_hosts_only(playground: Playgrounds, by_hand: HandMade) -> None:
    headers = {"Authorization": "Bearer {{ secrets.token }}", "X-Plain": "plain"}
    elsewhere = by_hand.url.replace("127.0.0.1", "inside.example")
    async with playground(
        far={"url": by_hand.url, "headers": headers}, other={"url": elsewhere, "headers": headers}
    ) as play:
        assert await play.call("far__act") == "done"
        assert by_hand.seen[-1].headers["Authorization"] == "Bearer a-secret-token"
        assert by_hand.seen[-1].headers["X-Plain"] == "plain"
        assert by_hand.seen[-1].headers["Accept-Encoding"] == "identity"
        assert play.servers.state("other").reason == "there is no secret 'token' for inside.example"


async def test_a_secret_goes_unencrypted_only_where_the_operator_opens_it(playground: Playgrounds) -> None:
    headers = {"Authorization": "Bearer {{ secrets.public_token }}"}
    async with playground(far={"url": "http://public.example/mcp", "headers": headers}) as play:
        assert "gets no secrets without https" in (play.servers.state("far").reason or "")


async def test_a_refusal_by_status_is_told_with_it(playground: Playgrounds, by_hand: HandMade) -> None:
    async def forbidden(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403)

    async with playground(far={"url": by_hand.url}) as play:
        by_hand.answer = forbidden
        assert "(HTTP 403)" in await play.refusal("far__act")


async def test_a_hanging_answer_does_not_hold_up_the_end(playground: Playgrounds, by_hand: HandMade) -> None:
    begun = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        return web.Response()

    async with playground(far={"url": by_hand.url}) as play:
        by_hand.answer = hang
        call = asyncio.create_task(play.refusal("far__act"))
        await begun.wait()
    assert "it was closed" in await call


@pytest.mark.parametrize("name", ["inside.example", "other.example"])
async def test_a_certificate_is_held_against_the_declared_host(
    playground: Playgrounds, authority: trustme.CA, name: str
) -> None:
    trusting, serving = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(trusting)
    authority.issue_cert(name).configure_cert(serving)
    async with served(serving) as server, playground(far={"url": server.url}, tls=trusting) as play:
        status = play.servers.state("far")
        if name == "inside.example":
            assert await play.call("far__act") == "done"
        else:
            assert "certificate" in (status.reason or "")
            assert server.seen == []
