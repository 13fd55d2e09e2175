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

    @property
    def text(self) -> str:
        """What the open, or the last, call has said so far."""
        return "".join(self._text)

    async def call(self, request: ModelRequest, step: int) -> ModelResponded | ModelFailed:
        """Call the model; how it went."""
        started = self._clock()
        self._text = []
        self._deltas.step = step
        response: ModelResponse | None = None
        spent: list[Spend] = []
        try:
            async with aclosing(self._models.stream(request)) as events:
                async for event in events:
                    match event:
                        case TextDelta() | ReasoningDelta() | ToolCallDelta():
                            self._add(event)
                        case ModelResponse():
                            response = event
                        case StreamRestarted(reason):
                            self._text = []
                            await self._on_restart(reason)
                        case Spend():
                            spent.append(event)
                        case ModelNotice(code, message, data):
                            self._on_notice(Event(EventType.WARNING, step, {"code": code, **data}, message=message))
                        case _:
                            assert_never(event)
        except ModelError as error:
            if error.spent is not None:
                spent.append(error.spent)
            return ModelFailed(error, tuple(spent))
        if response is None:
            unended = ModelError(ModelErrorCode.INVALID_RESPONSE, "the model's answer never ended")
            return ModelFailed(unended, tuple(spent))
        return ModelResponded(response, (self._clock() - started) * 1000, tuple(spent))

    def _add(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> None:
        match event:
            case TextDelta(text):
                self._text.append(text)
                self._deltas.add(EventType.TEXT_DELTA, text)
            case ReasoningDelta(text):
                self._deltas.add(EventType.REASONING_DELTA, text)
            case ToolCallDelta():
                self._deltas.add(EventType.TOOL_CALL_DELTA, event.delta, (event.tool_call_id, event.name))
            case _:
                assert_never(event)
        self._gatherer.touched(self._deltas)
