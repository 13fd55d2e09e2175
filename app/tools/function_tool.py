"""`@tool`: a Python function as a tool, still callable as the function that it is."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from pydantic import BaseModel

from app.engine.effects import ToolEffect
from app.engine.tools import ToolSpec
from app.tools.docstring import Docstring
from app.tools.errors import ToolDefinitionError
from app.tools.hooks import Hooks, Middleware, PostHook, PreHook
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
        hooks: what runs around the function.
        secrets: names of the operator's secrets that the function's context holds.
    """

    def __init__(
        self,
        function: Callable[P, R],
        spec: ToolSpec,
        arguments: Arguments,
        timeout_s: float,
        hooks: Hooks | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.spec = spec
        self.arguments = arguments
        self.timeout_s = timeout_s
        self.hooks = hooks or Hooks()
        self.secrets = secrets
        self.is_async = inspect.iscoroutinefunction(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<FunctionTool {self.spec.name} from {self.origin}>"

    @property
    def origin(self) -> str:
        """Module and name of the function, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


@dataclass(frozen=True, slots=True)
class _Options:
    """What `@tool(...)` was given."""

    name: str | None
    description: str | None
    args_model: type[BaseModel] | None
    timeout_s: float
    effect: str
    hooks: Hooks
    raise_on_error: bool
    secrets: tuple[str, ...]


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
    prehooks: Sequence[PreHook] = (),
    posthooks: Sequence[PostHook] = (),
    middlewares: Sequence[Middleware] = (),
    raise_on_error: bool = False,
    secrets: Sequence[str] = (),
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
    prehooks: Sequence[PreHook] = (),
    posthooks: Sequence[PostHook] = (),
    middlewares: Sequence[Middleware] = (),
    raise_on_error: bool = False,
    secrets: Sequence[str] = (),
) -> Any:
    """Make a tool of a sync or async function, as `@tool` or `@tool(...)`.

    A sync function runs in a thread. An async one runs on the event loop, beside every other run of the replica: it
    must not block, and no timeout can interrupt it while it does. The same holds for hooks and middlewares, whose time
    is part of the call's.

    A call goes this way: the model's text is validated, pre-hooks, policy, middlewares, the function, post-hooks; then
    the value is made safe to read and bounded.

    Args:
        name: what the model calls it; the function's name by default.
        description: what the model reads about it; the docstring's first paragraph by default.
        args_model: the arguments as a Pydantic model, instead of the function's type hints. The function then
            takes the model as its only parameter, or the model's fields by name; beside a `ToolContext`.
        timeout_s: the most seconds that a call may take, waiting for a thread included.
        effect: what a call does to the world, and so whether it may be run again when its outcome is unknown.
        prehooks: `hook(context, arguments)`, with the arguments as JSON data by name. It returns others, which are
            validated again, or None to leave them; raising refuses the call with the exception's text. What policy
            and people see are the arguments after it. It may run again after a crash.
        posthooks: `hook(context, value)`. It returns another value, or None to leave it. It does not see a `Deferral`.
        middlewares: `async middleware(context, arguments, call_next)`, the first one outermost, with the arguments as
            the function takes them. It returns the value, mostly that of `await call_next(arguments)`. A plain
            function cannot wait, only return what `call_next` returned.
        raise_on_error: a failed call ends the run as failed, whatever the agent's `tool_failure_policy` says; by
            default, the model reads the error and that policy decides.
        secrets: names of the operator's secrets that the function finds in `ToolContext.secrets`; a call fails while
            one of them is missing.

    Raises:
        ToolDefinitionError: the function cannot be a tool; says why.
    """
    caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    hooks = Hooks(tuple(prehooks), tuple(posthooks), tuple(middlewares))
    options = _Options(name, description, args_model, timeout_s, effect, hooks, raise_on_error, _names(secrets))

    def decorate(decorated: Callable[..., Any]) -> FunctionTool[..., Any]:
        # Type hints written as text can name what is local to the function around the definition.
        local = "<locals>" in getattr(decorated, "__qualname__", "")
        local_types = caller.f_locals if local else {}
        return _function_tool(decorated, local_types, options)

    return decorate if function is None else decorate(function)


def _names(secrets: Sequence[str]) -> tuple[str, ...]:
    if isinstance(secrets, str):
        raise ToolDefinitionError(f"secrets={secrets!r}: takes a list of names")
    return tuple(secrets)


def _function_tool(
    function: Callable[..., Any], local_types: Mapping[str, Any], options: _Options
) -> FunctionTool[..., Any]:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ToolDefinitionError(f"@tool takes a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ToolDefinitionError(f"tool {function.__name__!r} yields values; a tool returns one value")
    name = function.__name__ if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise ToolDefinitionError(
            f"tool name {name!r}: use 1 to 64 letters, digits, _ and -, starting with a letter or _"
        )
    if options.effect not in list(ToolEffect):
        known = ", ".join(ToolEffect)
        raise ToolDefinitionError(f"tool {name!r}: unknown effect {options.effect!r}; one of {known}")
    if not (options.timeout_s > 0 and math.isfinite(options.timeout_s)):
        raise ToolDefinitionError(f"tool {name!r}: timeout_s must be a positive number, not {options.timeout_s!r}")
    hooks = options.hooks
    for each in (*hooks.before, *hooks.after, *hooks.around):
        if not callable(each):
            raise ToolDefinitionError(f"tool {name!r}: a hook is a function, not {each!r}")
    docstring = Docstring.of(function)
    arguments = arguments_of(function, docstring, options.args_model, local_types)
    if options.secrets and arguments.context_parameter is None and hooks == Hooks():
        raise ToolDefinitionError(f"tool {name!r}: secrets are found in a ToolContext, and nothing here takes one")
    spec = ToolSpec(
        name=name,
        description=docstring.summary if options.description is None else options.description,
        parameters=arguments.json_schema,
        effect=ToolEffect(options.effect),
        has_prehooks=bool(hooks.before),
        raise_on_error=options.raise_on_error,
    )
    return FunctionTool(function, spec, arguments, options.timeout_s, hooks, options.secrets)
