"""The body of a 200 answer, read into the JSON texts that it holds, whether the server streamed it or not."""

from __future__ import annotations

import asyncio

import aiohttp

from app.llm.sse import SseOverflow, SseParser

# A provider that never stops would fill the memory that all runs of this process share. No model's longest answer comes
# near it; it is also the longest answer that is read where a server does not stream.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

_DONE = b"[DONE]"


class BodyError(Exception):
    """The body is nothing that a provider answers.

    Args:
        what: what is wrong with it.
        seen: its first bytes, for the message.
    """

    def __init__(self, what: str, seen: bytes = b"") -> None:
        super().__init__(what)
        self.what = what
        self.seen = seen


class AnswerBody:
    """Reads one body: `read` until it gives None.

    Args:
        end_grace_s: seconds that the body may take to end after [DONE], so that its connection can serve again.
    """

    __slots__ = ("_end_grace_s", "_ended", "_parser", "_response")

    def __init__(self, response: aiohttp.ClientResponse, end_grace_s: float) -> None:
        self._response = response
        self._end_grace_s = end_grace_s
        self._parser: SseParser | None = None
        self._ended = False

    async def read(self) -> list[bytes] | None:
        """The JSON texts that the next piece of the body completes, perhaps none yet; None after the last.

        Raises:
            BodyError: neither an event stream nor JSON, or too long to hold.
            aiohttp.ClientError, OSError: the connection broke.
        """
        if self._ended:
            return None
        piece = await self._response.content.readany()
        if self._parser is None:
            while piece.isspace():
                piece += await self._response.content.readany()
            if piece.lstrip()[:1] == b"{":  # a server that does not stream
                self._ended = True
                return [await self._rest(piece)]
            self._parser = self._new_parser(piece)
        if not piece:
            self._ended = True
            return [data for data in self._parser.finish() if data != _DONE]
        try:
            events = self._parser.feed(piece)
        except SseOverflow:
            raise BodyError("an event too long to hold") from None
        if _DONE in events:
            self._ended = True
            await self.drain()
            return events[: events.index(_DONE)]
        return events

    def _new_parser(self, first: bytes) -> SseParser:
        is_stream = self._response.content_type == "text/event-stream"
        if is_stream or first.lstrip().startswith((b"data:", b":", b"event:", b"id:", b"retry:")):
            return SseParser(MAX_ANSWER_BYTES)
        raise BodyError("an answer that is neither an event stream nor JSON", first)

    async def _rest(self, first: bytes) -> bytes:
        pieces, size = [first], len(first)
        while piece := await self._response.content.readany():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise BodyError("an answer too long to hold")
            pieces.append(piece)
        return b"".join(pieces)

    async def drain(self) -> None:
        """Nothing more is wanted: read what is left, for as long as the grace time lasts."""
        if self._response.content.at_eof():
            return
        try:
            async with asyncio.timeout(self._end_grace_s):
                while await self._response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # nothing of the answer is lost
