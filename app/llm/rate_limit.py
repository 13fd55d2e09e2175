"""Staying within what a provider allows in a minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import ModelClient, ModelEvent, ModelRequest, ModelResponse
from app.engine.usage import Usage
from app.llm.live_replicas import LiveReplicas
from app.llm.rate_log import Entry, RateLog
from app.llm.token_estimate import estimate_input

WINDOW_S = 60.0
# A request has arrived after so long, should the provider say nothing: connections included.
ARRIVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What one provider allows, to all replicas together.

    Args:
        requests, tokens: in any 60 s; None for no limit.
        wait_s: the most seconds that a call waits for its turn.
    """

    requests: int | None = None
    tokens: int | None = None
    wait_s: float = 30.0


class RateLimitClient:
    """A `ModelClient` that passes calls on to another one as fast as their provider allows, first come, first served.

    In no 60 s does a provider see more requests than its limit, however long they are on the way. Tokens are reserved
    before a call, its input by estimate and its output by max_tokens, and what was not used is given back at its
    end; so an answer without max_tokens may go over the limit by its own length. Each replica takes its share of a
    limit, one request at least: the shares add up to the limit from a minute after a replica was started.

    Args:
        limits: by provider, the prefix of the models' names; calls of others pass.
        replicas: who shares the limits.
        window_s: as long as a provider's minute.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        inner: ModelClient,
        limits: Mapping[str, RateLimit],
        replicas: LiveReplicas,
        *,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._limiters = {
            name: _Limiter(name, limit, replicas, window_s, clock)
            for name, limit in limits.items()
            if limit.requests is not None or limit.tokens is not None
        }

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; raises `ModelError` RATE_LIMITED for a call whose turn does not come in time, as
        soon as that is known."""
        limiter = self._limiters.get(request.model.partition("/")[0])
        return self._inner.stream(request) if limiter is None else self._limited(request, limiter)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    async def _limited(self, request: ModelRequest, limiter: _Limiter) -> AsyncGenerator[ModelEvent]:
        place = await limiter.turn(*limiter.need_of(request))
        used: Usage | None = None
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    if not place.arrived:
                        limiter.arrived(place)
                    if isinstance(event, ModelResponse):
                        used = event.usage
                    yield event
        except ModelError as error:
            used = _used_by(error, place)
            raise
        finally:
            limiter.ended(place, used)


@dataclass(slots=True, eq=False)
class _Place:
    """A call that was let through; its two parts in the log."""

    input: Entry
    output: Entry
    arrived: bool = False


@dataclass(slots=True, eq=False)
class _Waiter:
    input_tokens: int
    output_tokens: int
    place: asyncio.Future[_Place]

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def _used_by(error: ModelError, place: _Place) -> Usage:
    if error.spent is not None:
        return error.spent.usage
    refused = error.status is not None
    return Usage() if refused else Usage(input_tokens=place.input.tokens)


class _Limiter:
    """One provider's limit, and who waits for it."""

    def __init__(
        self, name: str, limit: RateLimit, replicas: LiveReplicas, window_s: float, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._limit = limit
        self._replicas = replicas
        self._window_s = window_s
        self._clock = clock
        self._log = RateLog(window_s, ARRIVAL_S)
        self._waiting: deque[_Waiter] = deque()
        self._waiting_input = 0
        self._timer: asyncio.TimerHandle | None = None

    def need_of(self, request: ModelRequest) -> tuple[int, int]:
        """The tokens, in and out, that a call has to have room for."""
        if self._limit.tokens is None:
            return 0, 0
        most = request.settings.get("max_tokens")
        return estimate_input(request), most if isinstance(most, int) else 0

    async def turn(self, input_tokens: int, output_tokens: int) -> _Place:
        """Wait until a call with so many tokens may go.

        Raises:
            ModelError: RATE_LIMITED: it may not within the time that it can wait.
        """
        waiter = _Waiter(input_tokens, output_tokens, asyncio.get_running_loop().create_future())
        self._log.advance(self._clock())
        if self._waiting or not self._fits(waiter):
            self._refuse_hopeless(waiter)
        self._waiting.append(waiter)
        self._waiting_input += waiter.input_tokens
        self._let_through()
        try:
            if not waiter.place.done():
                await asyncio.wait({waiter.place}, timeout=self._limit.wait_s)
            if waiter.place.done():
                return waiter.place.result()
        except asyncio.CancelledError:
            if waiter.place.done():
                self._give_back(waiter.place.result())
            raise
        finally:
            if not waiter.place.done():
                self._waiting.remove(waiter)
                self._waiting_input -= waiter.input_tokens
                self._let_through()
        raise self._refusal(self._wait_s(waiter))

    def arrived(self, place: _Place) -> None:
        """A first sign of the provider's answer."""
        place.arrived = True
        self._log.settle(place.input, self._clock())

    def ended(self, place: _Place, used: Usage | None) -> None:
        """The call is over; `used` is None where nobody knows what it has taken: then all that was reserved counts."""
        now = self._clock()
        self._log.settle(place.input, now)
        self._log.settle(place.output, now)
        if self._limit.tokens is not None:
            self._log.correct(place.input, place.input.tokens if used is None else used.input_tokens)
            self._log.correct(place.output, place.output.tokens if used is None else used.output_tokens)
        if self._waiting:
            self._let_through()

    def _give_back(self, place: _Place) -> None:
        self._log.forget(place.input)
        self._log.forget(place.output)
        self._let_through()

    def _let_through(self) -> None:
        """Let those go whose turn it is, and see that this is looked at again when more can."""
        now = self._clock()
        self._log.advance(now)
        while self._waiting and self._fits(self._waiting[0]):
            waiter = self._waiting.popleft()
            self._waiting_input -= waiter.input_tokens
            place = _Place(self._log.ask(now, waiter.input_tokens), self._log.expect(now, waiter.output_tokens))
            waiter.place.set_result(place)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and (change_at := self._log.next_change()) is not None:
            wait_s = max(0.0, change_at - now)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._let_through)

    def _fits(self, waiter: _Waiter) -> bool:
        requests, tokens = self._shares()
        return self._log.requests < requests and self._log.tokens + waiter.tokens <= tokens

    def _shares(self) -> tuple[float, float]:
        replicas = self._replicas.most_within(self._window_s)
        requests, tokens = self._limit.requests, self._limit.tokens
        return (
            float("inf") if requests is None else max(1, requests // replicas),
            float("inf") if tokens is None else max(1, tokens // replicas),
        )

    def _refuse_hopeless(self, waiter: _Waiter) -> None:
        _, tokens = self._shares()
        if waiter.tokens > tokens:
            raise ModelError(
                ModelErrorCode.RATE_LIMITED,
                f"{self._name}: a call of about {waiter.tokens} tokens (input and max_tokens) never fits into the "
                f"{tokens:g} a minute that it may have",
            )
        wait_s = self._wait_s(waiter)
        if wait_s > self._limit.wait_s:
            raise self._refusal(wait_s)

    def _wait_s(self, waiter: _Waiter) -> float:
        """The least that a call has to wait which comes now, behind all that wait already.

        What those may use for their output, and may give back, counts for nothing here.
        """
        now = self._clock()
        self._log.advance(now)
        requests, tokens = self._shares()
        requests -= len(self._waiting) + 1
        tokens -= self._waiting_input + waiter.tokens
        return self._log.room_from(now, requests, tokens) - now

    def _refusal(self, wait_s: float) -> ModelError:
        requests, _ = self._shares()
        what = "requests" if self._log.requests + len(self._waiting) >= requests else "tokens"
        return ModelError(
            ModelErrorCode.RATE_LIMITED,
            f"{self._name}: its limit of {what} a minute is used up, for at least {wait_s:.1f} s more",
            retry_after_s=wait_s,
        )
