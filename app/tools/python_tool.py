"""A Python function as the registry calls it: with its context, its hooks and its middlewares."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import orjson

from app.engine.tools import Deferral, ToolInvocation, ToolSpec
from app.tools.function_tool import FunctionTool
from app.tools.hooks import CallNext, Middleware
from app.tools.output import to_json
from app.tools.raised import Raised
from app.tools.secrets import Secrets
from app.tools.thread_pool import ThreadPool
from app.tools.tool_context import ToolContext


class PythonTool:
    """Implements `CallableTool`.

    Args:
        threads: where plain functions run.
        secrets: of which the tool gets those that it declared.
    """

    def __init__(self, tool: FunctionTool[..., Any], threads: ThreadPool, secrets: Secrets) -> None:
        self.tool = tool
        self._threads = threads
        self._secrets = secrets
        hooks = tool.hooks
        self.needs_context = bool(tool.arguments.context_parameter or hooks.before or hooks.after or hooks.around)
        self._is_bare = not hooks.after and not hooks.around
        self.is_plain = self._is_bare and not tool.is_async

    @property
    def spec(self) -> ToolSpec:
        return self.tool.spec

    @property
    def timeout_s(self) -> float:
        return self.tool.timeout_s

    @property
    def origin(self) -> str:
        """Where it is defined, for messages."""
        return self.tool.origin

    def parsed(self, arguments: str) -> dict[str, Any]:
        """See `CallableTool.parsed`."""
        return self.tool.arguments.parse(arguments)

    def normalised(self, arguments: str) -> str:
        """The arguments as the function will get them, as JSON text. Raises: CallError."""
        return self.tool.arguments.normalise(arguments)

    def bound(self, arguments: dict[str, Any], invocation: ToolInvocation) -> Callable[[], object]:
        """The function with all that it takes, ready to be called. Raises: CallError, a secret is missing."""
        return self._with_context(arguments, self._context(invocation))

    async def prepared(self, invocation: ToolInvocation) -> str:
        """Run the pre-hooks: the arguments after them, validated again, as JSON text.

        Raises:
            CallError: the arguments do not fit, before or after; or whatever a hook raised to refuse them.
        """
        text = self.normalised(invocation.arguments)
        context = self._context(invocation)
        for hook in self.tool.hooks.before:
            changed = await self._called(hook, context, orjson.loads(text))
            if changed is not None:
                text = self.normalised(to_json(changed))
        return text

    async def call(self, arguments: dict[str, Any], invocation: ToolInvocation) -> object:
        """See `CallableTool.call`."""
        context = self._context(invocation)
        if self._is_bare and self.tool.is_async:
            return await cast("Awaitable[object]", self._with_context(arguments, context)())

        async def handler(arguments: dict[str, Any]) -> Any:
            return await self._called(self._with_context(arguments, context))

        step: CallNext = handler
        for middleware in reversed(self.tool.hooks.around):
            step = self._around(middleware, context, step)
        value = await step(arguments)
        for hook in self.tool.hooks.after:
            if isinstance(value, Deferral):
                break
            changed = await self._called(hook, context, value)
            value = value if changed is None else changed
        return value

    def _around(self, middleware: Middleware, context: ToolContext | None, call_next: CallNext) -> CallNext:
        async def step(arguments: dict[str, Any]) -> Any:
            return await self._called(middleware, context, arguments, call_next)

        return step

    def _context(self, invocation: ToolInvocation) -> ToolContext | None:
        if not self.needs_context:
            return None
        return ToolContext.of(invocation, {name: self._secrets.value(name) for name in self.tool.secrets})

    def _with_context(self, arguments: dict[str, Any], context: ToolContext | None) -> Callable[[], object]:
        name = self.tool.arguments.context_parameter
        return partial(self.tool.function, **(arguments if name is None else {**arguments, name: context}))

    async def _called(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a coroutine function here and any other in a thread; what is to be awaited is awaited here."""
        call = partial(function, *arguments, **named)
        value = call() if inspect.iscoroutinefunction(function) else await self._in_thread(call)
        return await cast("Awaitable[Any]", value) if isinstance(value, Awaitable) else value

    async def _in_thread(self, call: Callable[[], object]) -> object:
        def caught() -> object:
            try:
                return call()
            except BaseException as error:  # noqa: BLE001 - a thread's edge; it is raised again where it is awaited
                return Raised(error)

        outcome: object = await self._threads.run(caught, self.timeout_s)
        if isinstance(outcome, Raised):
            raise outcome.error
        return outcome
