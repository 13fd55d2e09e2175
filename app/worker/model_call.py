"""One model call: its stream, read to the end, with its deltas on their way to the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import assert_never

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import Event, EventType
from app.engine.model import (
    ModelClient,
    ModelNotice,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    Spend,
    StreamRestarted,
    TextDelta,
    ToolCallDelta,
)
from app.engine.outcomes import ModelFailed, ModelResponded
from app.llm.priced import spend_of
from app.llm.token_estimate import estimate_input
from app.worker.deltas import DeltaGatherer, DeltaLog


class ModelCaller:
    """Makes the model calls of one attempt.

    Args:
        on_restart: told that the stream broke and begins anew, before anything new is added; takes the reason.
        on_notice: told what readers of the run should know of a call, while it is under way.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        models: ModelClient,
        gatherer: DeltaGatherer,
        deltas: DeltaLog,
        on_restart: Callable[[str], Awaitable[None]],
        on_notice: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._models = models
        self._gatherer = gatherer
        self._deltas = deltas
        self._on_restart = on_restart
        self._on_notice = on_notice
        self._clock = clock
        self._text: list[str] = []
        self._chars = 0  # of all that the open call has said
        self._open: ModelRequest | None = None
        self._spent: list[Spend] = []

    @property
    def text(self) -> str:
        """What the open, or the last, call has said so far."""
        return "".join(self._text)

    def broken_off(self) -> tuple[Spend, ...]:
        """What a call took that was broken off in the middle; nothing where none was, or it had not said anything."""
        request, self._open = self._open, None
        if request is None:
            return ()
        said = f"a call of {request.model} was broken off"
        last = (spend_of(request.model, estimate_input(request), self._chars, said),) if self._chars else ()
        return (*self._spent, *last)

    async def call(self, request: ModelRequest, step: int) -> ModelResponded | ModelFailed:
        """Call the model; how it went."""
        started = self._clock()
        self._text, self._chars = [], 0
        self._open, self._spent = request, []
        spent = self._spent
        self._deltas.step = step
        response: ModelResponse | None = None
        try:
            async with aclosing(self._models.stream(request)) as events:
                async for event in events:
                    match event:
                        case TextDelta() | ReasoningDelta() | ToolCallDelta():
                            self._add(event)
                        case ModelResponse():
                            response = event
                        case StreamRestarted(reason):
                            self._text, self._chars = [], 0
                            await self._on_restart(reason)
                        case Spend():
                            spent.append(event)
                        case ModelNotice(code, message, data):
                            self._on_notice(Event(EventType.WARNING, step, {"code": code, **data}, message=message))
                        case _:
                            assert_never(event)
        except ModelError as error:
            self._open = None
            if error.spent is not None:
                spent.append(error.spent)
            return ModelFailed(error, tuple(spent))
        self._open = None
        if response is None:
            unended = ModelError(ModelErrorCode.INVALID_RESPONSE, "the model's answer never ended")
            return ModelFailed(unended, tuple(spent))
        return ModelResponded(response, (self._clock() - started) * 1000, tuple(spent))

    def _add(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> None:
        match event:
            case TextDelta(text):
                self._chars += len(text)
                self._text.append(text)
                self._deltas.add(EventType.TEXT_DELTA, text)
            case ReasoningDelta(text):
                self._chars += len(text)
                self._deltas.add(EventType.REASONING_DELTA, text)
            case ToolCallDelta():
                self._chars += len(event.name) + len(event.delta)
                self._deltas.add(EventType.TOOL_CALL_DELTA, event.delta, (event.tool_call_id, event.name))
            case _:
                assert_never(event)
        self._gatherer.touched(self._deltas)
