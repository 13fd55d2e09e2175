"""The one table from exceptions to HTTP answers, all of them `application/problem+json` (RFC 9457).

Raised here, by reading requests:

    RequestError
    ├── InvalidRequest          values that do not fit; `problems` says which
    ├── PayloadTooLarge
    └── UnsupportedMediaType

Everything else comes from `app.services.errors`, `app.engine.store_errors` and `app.db.conflicts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.api.request_id import request_id_of
from app.db.conflicts import NotNow, TransactionUndone
from app.engine.store_errors import (
    AgentChanged,
    CompactedMeanwhile,
    IdempotencyMismatch,
    InteractionDecided,
    InteractionNotFound,
    LimitReached,
    ResultConflict,
    RunConflict,
    RunNotFound,
    StoreError,
    StoreUnavailable,
    ThreadBusy,
    ThreadExists,
    ThreadNotFound,
    ToolCallNotFound,
    reason_of,
)
from app.services.errors import (
    Conflict,
    EventsTrimmed,
    Invalid,
    ModelUnavailable,
    NotFound,
    ServiceError,
    TooManyRuns,
    UnknownAgent,
    UnknownTool,
)
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_S = 1

_refusals = Recurring(get_logger(__name__), "unavailable")


class ProblemCode(StrEnum):
    """What went wrong, for programs."""

    VALIDATION_ERROR = "validation_error"
    UNKNOWN_TOOL = "unknown_tool"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    NOT_FOUND = "not_found"
    UNKNOWN_AGENT = "unknown_agent"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    THREAD_BUSY = "thread_busy"
    LIMIT_REACHED = "limit_reached"
    EVENTS_TRIMMED = "events_trimmed"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    TOO_MANY_RUNS = "too_many_runs"
    UNAVAILABLE = "unavailable"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    INTERNAL = "internal"


STATUS: Mapping[ProblemCode, HTTPStatus] = {
    ProblemCode.VALIDATION_ERROR: HTTPStatus.UNPROCESSABLE_ENTITY,
    ProblemCode.UNKNOWN_TOOL: HTTPStatus.UNPROCESSABLE_ENTITY,
    ProblemCode.IDEMPOTENCY_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    ProblemCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ProblemCode.UNKNOWN_AGENT: HTTPStatus.NOT_FOUND,
    ProblemCode.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    ProblemCode.CONFLICT: HTTPStatus.CONFLICT,
    ProblemCode.THREAD_BUSY: HTTPStatus.CONFLICT,
    ProblemCode.LIMIT_REACHED: HTTPStatus.CONFLICT,
    ProblemCode.EVENTS_TRIMMED: HTTPStatus.GONE,
    ProblemCode.PAYLOAD_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ProblemCode.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ProblemCode.TOO_MANY_RUNS: HTTPStatus.TOO_MANY_REQUESTS,
    ProblemCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ProblemCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ProblemCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ProblemCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one value; `loc` is its path, such as `("body", "limits", "max_steps")`."""

    loc: tuple[str | int, ...]
    msg: str


class RequestError(Exception):
    """Root of what reading a request raises."""


class InvalidRequest(RequestError):
    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__("; ".join(problem.msg for problem in problems))
        self.problems = tuple(problems)

    @classmethod
    def at(cls, msg: str, *loc: str | int) -> InvalidRequest:
        """A single problem."""
        return cls([FieldProblem(loc, msg)])


class PayloadTooLarge(RequestError):
    pass


class UnsupportedMediaType(RequestError):
    pass


CODES: Mapping[type[Exception], ProblemCode] = {
    InvalidRequest: ProblemCode.VALIDATION_ERROR,
    PayloadTooLarge: ProblemCode.PAYLOAD_TOO_LARGE,
    UnsupportedMediaType: ProblemCode.UNSUPPORTED_MEDIA_TYPE,
    Invalid: ProblemCode.VALIDATION_ERROR,
    UnknownTool: ProblemCode.UNKNOWN_TOOL,
    NotFound: ProblemCode.NOT_FOUND,
    UnknownAgent: ProblemCode.UNKNOWN_AGENT,
    Conflict: ProblemCode.CONFLICT,
    ModelUnavailable: ProblemCode.UNAVAILABLE,
    TooManyRuns: ProblemCode.TOO_MANY_RUNS,
    EventsTrimmed: ProblemCode.EVENTS_TRIMMED,
    RunNotFound: ProblemCode.NOT_FOUND,
    RunConflict: ProblemCode.CONFLICT,
    LimitReached: ProblemCode.LIMIT_REACHED,
    ThreadBusy: ProblemCode.THREAD_BUSY,
    ThreadNotFound: ProblemCode.NOT_FOUND,
    ThreadExists: ProblemCode.CONFLICT,
    CompactedMeanwhile: ProblemCode.CONFLICT,
    IdempotencyMismatch: ProblemCode.IDEMPOTENCY_MISMATCH,
    InteractionNotFound: ProblemCode.NOT_FOUND,
    InteractionDecided: ProblemCode.CONFLICT,
    ToolCallNotFound: ProblemCode.NOT_FOUND,
    ResultConflict: ProblemCode.CONFLICT,
    StoreUnavailable: ProblemCode.UNAVAILABLE,
    TransactionUndone: ProblemCode.UNAVAILABLE,
    NotNow: ProblemCode.UNAVAILABLE,
    # Services resolve an agent again when it has changed; one that changes all the time is a matter of trying later.
    AgentChanged: ProblemCode.UNAVAILABLE,
}

_OF_ROUTER = {status: code for code, status in reversed(STATUS.items())} | {
    HTTPStatus.NOT_FOUND: ProblemCode.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: ProblemCode.METHOD_NOT_ALLOWED,
}


def register_error_handlers(app: FastAPI) -> None:
    """Answer every exception of the table, and the router's own, with a problem."""
    for kind in (RequestError, ServiceError, StoreError):
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(HTTPException, _of_router)


def problem(
    request: Request,
    code: ProblemCode,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """An answer of the code's status; `members` are those that only some codes have."""
    status = STATUS[code]
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "code": code,
        "request_id": request_id_of(request.scope),
        **members,
    }
    return Response(orjson.dumps(body), status.value, headers, MEDIA_TYPE)


async def _known(request: Request, error: Exception) -> Response:
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), None)
    if code is None:
        raise error  # none that a request should meet: for the edge to answer
    match error:
        case InvalidRequest():
            errors = [{"loc": each.loc, "msg": each.msg} for each in error.problems]
            return problem(request, code, _summary(error.problems), errors=errors)
        case Invalid():
            return problem(
                request,
                code,
                _summary([FieldProblem(error.loc, str(error))]),
                errors=[{"loc": error.loc, "msg": str(error)}],
            )
        case IdempotencyMismatch():
            header = {"loc": ("header", "Idempotency-Key"), "msg": str(error)}
            return problem(request, code, str(error), errors=[header])
        case Conflict() | RunConflict():
            return problem(request, code, str(error), current_status=error.current_status)
        case InteractionDecided() | ResultConflict() | CompactedMeanwhile():
            return problem(request, code, str(error), current_status=None)
        case EventsTrimmed():
            return problem(request, code, str(error), first_seq=error.first_seq)
        case TooManyRuns() | ModelUnavailable():
            return problem(request, code, str(error), headers={"Retry-After": str(error.retry_after_s)})
        case StoreUnavailable() | AgentChanged():
            _refusals.failed(str(error), request_id=request_id_of(request.scope), error=reason_of(error))
            return unavailable(request, str(error))
        case _:
            return problem(request, code, str(error))


def unavailable(request: Request, detail: str) -> Response:
    """503, with a hint when to try again."""
    return problem(request, ProblemCode.UNAVAILABLE, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _OF_ROUTER.get(HTTPStatus(error.status_code), ProblemCode.INTERNAL)
    match code:
        case ProblemCode.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
        case ProblemCode.METHOD_NOT_ALLOWED:
            detail = f"{request.method} is not possible at {request.url.path}"
        case _:
            detail = error.detail
    return problem(request, code, detail, headers=error.headers)


def _summary(problems: Sequence[FieldProblem]) -> str:
    first = problems[0]
    place = ".".join(str(part) for part in first.loc)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {first.msg}{more}"
