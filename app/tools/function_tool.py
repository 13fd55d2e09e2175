"""`@tool`: a Python function as a tool, still callable as the function that it is."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from pydantic import BaseModel

from app.engine.tools import ToolEffect, ToolSpec
from app.tools.docstring import Docstring
from app.tools.errors import ToolDefinitionError
from app.tools.schema import Arguments, arguments_of

P = ParamSpec("P")
R = TypeVar("R")

EffectName = Literal["read_only", "idempotent", "unsafe"]

DEFAULT_TIMEOUT_S = 30.0

# What the chat-completions API accepts as a function's name and an agent's definition as a tool's.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class FunctionTool(Generic[P, R]):
    """A function that a model can call.

    Calling it calls the plain function; validation, timeout and bounds are `ToolRegistry.invoke`'s.

    Args:
        function: what runs; a sync one runs in a thread, an async one on the event loop.
        spec: what the model sees.
        arguments: how the model's text becomes keyword arguments.
        timeout_s: the most seconds that one call may take.
    """

    def __init__(self, function: Callable[P, R], spec: ToolSpec, arguments: Arguments, timeout_s: float) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.spec = spec
        self.arguments = arguments
        self.timeout_s = timeout_s
        self.is_async = inspect.iscoroutinefunction(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<FunctionTool {self.spec.name} from {self.origin}>"

    @property
    def origin(self) -> str:
        """Module and name of the function, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    args_model: type[BaseModel] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    effect: EffectName | ToolEffect = ToolEffect.UNSAFE,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    args_model: type[BaseModel] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    effect: EffectName | ToolEffect = ToolEffect.UNSAFE,
) -> Any:
    """Make a tool of a sync or async function, as `@tool` or `@tool(...)`.

    A sync function runs in a thread. An async one runs on the event loop, beside every other run of the replica: it
    must not block, and no timeout can interrupt it while it does.

    Args:
        name: what the model calls it; the function's name by default.
        description: what the model reads about it; the docstring's first paragraph by default.
        args_model: the arguments as a Pydantic model, instead of the function's type hints. The function then
            takes the model as its only parameter, or the model's fields by name; beside a `ToolContext`.
        timeout_s: the most seconds that a call may take, waiting for a thread included.
        effect: what a call does to the world, and so whether it may be run again when its outcome is unknown.

    Raises:
        ToolDefinitionError: the function cannot be a tool; says why.
    """
    caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]

    def decorate(decorated: Callable[..., Any]) -> FunctionTool[..., Any]:
        # Type hints written as text can name what is local to the function around the definition.
        local = "<locals>" in getattr(decorated, "__qualname__", "")
        local_types = caller.f_locals if local else {}
        return _function_tool(decorated, local_types, name, description, args_model, timeout_s, effect)

    return decorate if function is None else decorate(function)


def _function_tool(
    function: Callable[..., Any],
    local_types: Mapping[str, Any],
    name: str | None,
    description: str | None,
    args_model: type[BaseModel] | None,
    timeout_s: float,
    effect: str,
) -> FunctionTool[..., Any]:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ToolDefinitionError(f"@tool takes a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ToolDefinitionError(f"tool {function.__name__!r} yields values; a tool returns one value")
    name = function.__name__ if name is None else name
    if not _NAME.fullmatch(name):
        raise ToolDefinitionError(
            f"tool name {name!r}: use 1 to 64 letters, digits, _ and -, starting with a letter or _"
        )
    if effect not in list(ToolEffect):
        known = ", ".join(ToolEffect)
        raise ToolDefinitionError(f"tool {name!r}: unknown effect {effect!r}; one of {known}")
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ToolDefinitionError(f"tool {name!r}: timeout_s must be a positive number, not {timeout_s!r}")
    docstring = Docstring.of(function)
    arguments = arguments_of(function, docstring, args_model, local_types)
    spec = ToolSpec(
        name=name,
        description=docstring.summary if description is None else description,
        parameters=arguments.json_schema,
        effect=ToolEffect(effect),
    )
    return FunctionTool(function, spec, arguments, timeout_s)
