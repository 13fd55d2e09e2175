"""Models that answer from a script, offline: `scripted/NAME` from a file, `ScriptedModel` from Python.

A script is a list of turns. Which turn answers follows from the request alone (how many assistant messages
stand after the last user message), so a script goes on where it was after a crash and begins anew with each
run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import uuid4

import orjson
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Role, ToolCall
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    TextDelta,
    ToolCallDelta,
)
from app.engine.usage import Usage
from app.llm.token_estimate import estimate_usage

PREFIX = "scripted/"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_WORDS = re.compile(r"\s*\S+\s*|\s+")
_PLACEHOLDER = re.compile(r"\{\{\s*(user|last_tool_output)\s*\}\}")

Seconds = Annotated[float, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScriptedCall(_Strict):
    """A tool call. `arguments` is an object, or text that is sent as it is (malformed JSON, for one)."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] | str = Field(default_factory=dict[str, Any])
    id: str | None = Field(default=None, min_length=1)


class ScriptedError(_Strict):
    """A failure, raised after the turn's text has been sent."""

    code: ModelErrorCode
    message: str = "the script says so"
    status: int | None = None
    retry_after_s: Seconds | None = None


class ScriptedUsage(_Strict):
    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_input_tokens: Count = 0
    reasoning_tokens: Count = 0


class Turn(_Strict):
    """One answer.

    Texts may hold `{{ user }}` (the last user message) and `{{ last_tool_output }}`, in `text` and in the
    strings of arguments.

    Args:
        delay_s: seconds before the first piece.
        chunk_delay_s: seconds before each further word.
        usage: what the answer reports; by default the estimate.
    """

    text: str = ""
    tool_calls: tuple[ScriptedCall, ...] = ()
    delay_s: Seconds = 0.0
    chunk_delay_s: Seconds = 0.0
    error: ScriptedError | None = None
    finish_reason: FinishReason | None = None
    usage: ScriptedUsage | None = None


_TURNS = TypeAdapter(tuple[Turn, ...])


class ScriptError(ValueError):
    """A script cannot be used; the message names the file and the place in it."""


class ScriptedModel:
    """A `ModelClient` that answers with the given turns, each a `Turn` or a mapping of its fields.

    Args:
        name: what error messages call the script.
        sleep: waits so many seconds.

    Raises:
        ScriptError: a turn has a field that does not exist, or a value that does not fit.
    """

    def __init__(
        self,
        turns: Sequence[Turn | Mapping[str, Any]],
        *,
        name: str = "script",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._turns = _validated(list(turns), name)
        self._name = name
        self._sleep = sleep

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; raises `ModelError` INVALID_REQUEST past the last turn."""
        turn = self._turn_for(request)
        fill = _filler(request)
        text = fill(turn.text)
        if turn.delay_s:
            await self._sleep(turn.delay_s)
        for place, word in enumerate(_WORDS.findall(text)):
            if place and turn.chunk_delay_s:
                await self._sleep(turn.chunk_delay_s)
            yield TextDelta(word)
        if turn.error is not None:
            error = turn.error
            raise ModelError(error.code, error.message, status=error.status, retry_after_s=error.retry_after_s)
        calls = tuple(_tool_call(call, fill) for call in turn.tool_calls)
        for index, call in enumerate(calls):
            yield ToolCallDelta(index, call.id, call.name, call.arguments)
        yield _response(request, turn, text, calls)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`; there is nothing to give back."""

    def _turn_for(self, request: ModelRequest) -> Turn:
        done = 0
        for message in reversed(request.messages):
            if message.role is Role.USER:
                break
            done += message.role is Role.ASSISTANT
        if done >= len(self._turns):
            raise ModelError(
                ModelErrorCode.INVALID_REQUEST,
                f"{self._name} has {len(self._turns)} turns, and turn {done + 1} was asked for",
            )
        return self._turns[done]


class ScriptFiles:
    """A `ModelClient` for `scripted/NAME`: answers from `<folder>/NAME.yaml`; an edited file is read anew."""

    def __init__(self, folder: Path | None, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._folder = folder
        self._sleep = sleep
        self._read: dict[Path, tuple[tuple[int, int], ScriptedModel]] = {}

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; a script that cannot be used is MODEL_NOT_FOUND or INVALID_REQUEST."""
        try:
            script = self._script(request.model)
        except FileNotFoundError as error:
            raise ModelError(ModelErrorCode.MODEL_NOT_FOUND, str(error)) from None
        except (ScriptError, OSError) as error:
            raise ModelError(ModelErrorCode.INVALID_REQUEST, str(error)) from None
        async with aclosing(script.stream(request)) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """See `ModelClient.aclose`; there is nothing to give back."""

    def problem_with(self, model: str) -> str | None:
        """Why `scripted/NAME` cannot be used, or None if it can."""
        try:
            self._script(model)
        except (ScriptError, OSError) as error:
            return str(error)
        return None

    def _script(self, model: str) -> ScriptedModel:
        path = self._path_of(model)
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"{model}: there is no {path.name} in the scripts folder") from None
        version = (stat.st_mtime_ns, stat.st_size)
        read = self._read.get(path)
        if read is None or read[0] != version:
            script = ScriptedModel(_turns_in(path), name=path.name, sleep=self._sleep)
            read = self._read[path] = (version, script)
        return read[1]

    def _path_of(self, model: str) -> Path:
        name = model.removeprefix(PREFIX)
        if self._folder is None:
            raise ScriptError(f"{model}: no folder of scripts is set")
        if not _NAME.fullmatch(name):
            raise ScriptError(f"{model}: a script's name is made of letters, digits, _ and -")
        return self._folder / f"{name}.yaml"


def _turns_in(path: Path) -> list[Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path.name}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, list):
        raise ScriptError(f"{path.name}: must be a list of turns")
    return cast("list[Any]", document)


def _validated(turns: list[Any], name: str) -> tuple[Turn, ...]:
    try:
        return _TURNS.validate_python(turns)
    except ValidationError as invalid:
        problems = [f"{_place(error['loc'])}: {error['msg']}" for error in invalid.errors()]
        raise ScriptError(f"{name}: " + "; ".join(problems)) from None


def _place(loc: tuple[int | str, ...]) -> str:
    place = "turns"
    for step in loc:
        place += f"[{step}]" if isinstance(step, int) else f".{step}"
    return place


def _filler(request: ModelRequest) -> Callable[[str], str]:
    values = {"user": "", "last_tool_output": ""}
    for message in request.messages:
        if message.role is Role.USER:
            values["user"] = message.text()
        elif message.role is Role.TOOL:
            values["last_tool_output"] = message.text()
    return lambda text: _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def _tool_call(call: ScriptedCall, fill: Callable[[str], str]) -> ToolCall:
    if isinstance(call.arguments, str):
        arguments = fill(call.arguments)
    else:
        arguments = orjson.dumps(_filled(call.arguments, fill)).decode()
    return ToolCall(call.id or f"call_{uuid4().hex[:24]}", call.name, arguments)


def _filled(value: Any, fill: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return fill(value)
    if isinstance(value, dict):
        return {key: _filled(item, fill) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_filled(item, fill) for item in cast("list[Any]", value)]
    return value


def _response(request: ModelRequest, turn: Turn, text: str, calls: tuple[ToolCall, ...]) -> ModelResponse:
    usage = estimate_usage(request, text, calls)
    if turn.usage is not None:
        usage = Usage(llm_calls=1, **turn.usage.model_dump())
    return ModelResponse(
        provider="scripted",
        model=request.model.removeprefix(PREFIX),
        text=text,
        tool_calls=calls,
        finish_reason=turn.finish_reason or (FinishReason.TOOL_CALLS if calls else FinishReason.STOP),
        usage=usage,
        cost_usd=Decimal(0),
    )
