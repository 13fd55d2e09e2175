"""The model server on a thread of its own, for tests whose service outlives their event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from tests.acceptance.waiting import holds
from tests.model_server import ModelServer, RecordedRequest, Reply

_WITHIN_S = 10.0

_T = TypeVar("_T")


class Model:
    """A running `ModelServer`. Its answers are scripted in the order of the requests, whoever makes them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="model-server", daemon=True)
        self._thread.start()
        self._server = ModelServer()
        self._run(self._server.__aenter__())

    def close(self) -> None:
        self._run(self._server.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WITHIN_S)
        self._loop.close()

    @property
    def base_url(self) -> str:
        return self._server.base_url

    def script(self, *replies: Reply) -> None:
        """Queue answers, one for each coming request."""
        self._ask(lambda: self._server.script(replies))

    def answer(self, by: Callable[[RecordedRequest], Reply]) -> None:
        """Have what is not scripted answered by a function, which is called on the server's thread."""
        self._ask(lambda: setattr(self._server, "answer", by))

    def break_embeddings(self, fault: Callable[[dict[str, Any]], Reply | None]) -> None:
        """See `ModelServer.break_embeddings`."""
        self._ask(lambda: self._server.break_embeddings(fault))

    def embedding_requests(self) -> list[dict[str, Any]]:
        """The bodies of requests for embeddings since the last reset."""
        return self._ask(lambda: [request.body for request in self._server.embedding_requests])

    def reset(self) -> None:
        """Forget what was scripted and what was received."""
        httpx.post(self.base_url.removesuffix("/v1") + "/reset", trust_env=False, verify=False).raise_for_status()

    def requests(self) -> list[dict[str, Any]]:
        """The bodies received since the last reset."""
        return self._ask(lambda: [request.body for request in self._server.requests])

    def headers(self) -> list[dict[str, str]]:
        """The headers of the same requests, their names in lower case."""
        return self._ask(lambda: [request.headers for request in self._server.requests])

    def messages(self) -> list[dict[str, Any]]:
        """The messages of the last request."""
        return self.requests()[-1]["messages"]

    @property
    def aborted(self) -> int:
        """Requests whose connection the service closed before the answer was whole."""
        return self._server.aborted

    async def asked(self, times: int = 1) -> None:
        """Wait until so many requests have come since the last reset."""
        await holds(lambda: len(self.requests()) >= times, f"{times} model calls")

    async def saw_hang_up(self, times: int = 1) -> None:
        """Wait until so many requests have been broken off by the service."""
        await holds(lambda: self.aborted >= times, f"{times} model calls to be broken off")

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        await holds(lambda: self._server.open == 0, "all model calls to end")

    def _ask(self, question: Callable[[], _T]) -> _T:
        answer: Future[_T] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(question()))
        return answer.result(_WITHIN_S)

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_WITHIN_S)


def calls(*pairs: tuple[str, dict[str, Any]], text: str = "", start: int = 1) -> Reply:
    """An answer that asks for tools: (name, arguments) each, with the ids call_1, call_2 and so on."""
    tool_calls = [
        {"id": f"call_{number}", "name": name, "arguments": arguments}
        for number, (name, arguments) in enumerate(pairs, start)
    ]
    return Reply(text=text, tool_calls=tool_calls)


# The answer begins and then nothing comes any more.
SILENT = Reply(text="", first_chunk_delay_s=60.0)
