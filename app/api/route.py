"""The class of all our routes: documented by FastAPI, bound by `app.api.binding`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from app.api.binding import Binder

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class ApiRoute(APIRoute):
    """Answers its methods, HEAD where it answers GET, and OPTIONS with the methods of its path."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **settings: Any) -> None:
        super().__init__(path, endpoint, **settings)
        self._answer = endpoint
        self._own_methods = frozenset(self.methods or ())
        self._bind = Binder(endpoint, takes_body=bool(self._own_methods & _WITH_BODY))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is Match.PARTIAL and self._is_head(scope):
            match = Match.FULL
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        if scope["method"] in self._own_methods or self._is_head(scope):
            response = await self._answer(**await self._bind(request))
        else:
            response = _options(request)
        await response(scope, receive, send)

    def _is_head(self, scope: Scope) -> bool:
        return scope["method"] == "HEAD" and "GET" in self._own_methods


def _options(request: Request) -> Response:
    """What an OPTIONS request gets to know, and any other method that the path does not have."""
    methods = {"OPTIONS"}
    for route in cast("list[Any]", request.app.routes):
        if isinstance(route, Route) and route.path_regex.fullmatch(request.scope["path"]):
            methods |= route.methods or set()
    if "GET" in methods:
        methods.add("HEAD")
    allow = {"Allow": ", ".join(sorted(methods))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    raise HTTPException(405, headers=allow)
