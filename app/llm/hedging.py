"""A second call beside one that does not begin to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.engine.errors import ModelError
from app.engine.model import ModelClient, ModelEvent, ModelRequest, ModelResponse
from app.engine.usage import Spend
from app.llm.priced import TalliedRequest, spend_of
from app.llm.token_estimate import estimate_input

_REASON = "a call that was made twice was answered by the other one"


class HedgingClient:
    """A `ModelClient` that makes a call of another one a second time where nothing has come for `hedge_after_s`.

    Whichever gives a first event is read to its end. The other one is cancelled and its connection closed before that;
    what it has cost, if it had been sent to its provider, is a `Spend` ahead of the answer. Where one of them fails the
    other one goes on.
    """

    def __init__(self, inner: ModelClient) -> None:
        self._inner = inner

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; where both calls fail, the error of the one that failed last."""
        after_s = request.policies.hedge_after_s
        return self._inner.stream(request) if after_s is None else self._race(request, after_s)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    async def _race(self, request: ModelRequest, after_s: float) -> AsyncGenerator[ModelEvent]:
        calls = [_Call(self._inner, request)]
        try:
            await asyncio.wait({calls[0].first}, timeout=after_s)
            if not calls[0].first.done():
                calls.append(_Call(self._inner, request))
            winner = await _winner(calls)
            losers = [call for call in calls if call is not winner]
            for loser in losers:
                await loser.close()
            async with aclosing(winner.events(request, losers)) as events:
                async for event in events:
                    yield event
        finally:
            for call in calls:
                await call.close()


class _Call:
    """One of the calls. `first` ends with its first event; None where it ended without any."""

    def __init__(self, client: ModelClient, request: ModelRequest) -> None:
        self._request = TalliedRequest.of(request)
        self._stream = client.stream(self._request)
        self.first = asyncio.create_task(self._first(), name="model-call")

    @property
    def failed(self) -> bool:
        return self.first.done() and not self.first.cancelled() and self.first.exception() is not None

    async def events(self, request: ModelRequest, losers: list[_Call]) -> AsyncGenerator[ModelEvent]:
        """All events, and before the last one what the losers have cost; also where this call breaks off."""
        event = self.first.result()
        try:
            while event is not None:
                if isinstance(event, ModelResponse):
                    for loser in losers:
                        for spend in loser.spent(event.usage.input_tokens):
                            yield spend
                yield event
                event = await anext(self._stream, None)
        except ModelError:
            for loser in losers:
                for spend in loser.spent(estimate_input(request)):
                    yield spend
            raise

    def spent(self, input_tokens: int) -> list[Spend]:
        """What it has taken, now that it is closed, given what its input comes to."""
        if self.failed:
            error = self.first.exception()
            return [error.spent] if isinstance(error, ModelError) and error.spent is not None else []
        tally = self._request.tally
        return [spend_of(self._request.model, input_tokens, tally.chars, _REASON)] if tally.sent else []

    async def close(self) -> None:
        """End it, wherever it is, and give its connection up."""
        if not self.first.done():
            self.first.cancel()
            await asyncio.wait({self.first})
        _ = self.failed  # an error that nobody looks at would be logged as forgotten
        await self._stream.aclose()

    async def _first(self) -> ModelEvent | None:
        return await anext(self._stream, None)


async def _winner(calls: list[_Call]) -> _Call:
    """The first call with an event; of several at once the earlier one.

    Raises:
        ModelError: all failed; the error of the one that did so last.
    """
    failed: list[_Call] = []
    while True:
        for call in calls:
            if call.failed and call not in failed:
                failed.append(call)
            elif call.first.done() and not call.failed:
                return call
        if len(failed) == len(calls):
            failed[-1].first.result()
        await asyncio.wait({call.first for call in calls if not call.first.done()}, return_when=asyncio.FIRST_COMPLETED)
