"""Errors that the engine knows, classed once.

    EngineError
    └── ModelError          a model call failed; `code` says how, `retryable` whether trying again can help

`RunError` is not an exception: it is the outcome that a run carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.engine.usage import Spend


class EngineError(Exception):
    """Root of the engine's exceptions."""


class ModelErrorCode(StrEnum):
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "model_timeout"
    CONNECTION = "connection_failed"
    SERVER_ERROR = "provider_error"
    INVALID_RESPONSE = "invalid_response"
    CONFLICT = "provider_conflict"
    AUTHENTICATION = "authentication_failed"
    INVALID_REQUEST = "invalid_model_request"
    MODEL_NOT_FOUND = "model_not_found"
    CONTEXT_OVERFLOW = "context_overflow"
    CIRCUIT_OPEN = "circuit_open"


RETRYABLE_CODES = frozenset(
    {
        ModelErrorCode.RATE_LIMITED,
        ModelErrorCode.TIMEOUT,
        ModelErrorCode.CONNECTION,
        ModelErrorCode.SERVER_ERROR,
        ModelErrorCode.INVALID_RESPONSE,
        ModelErrorCode.CONFLICT,
        ModelErrorCode.CIRCUIT_OPEN,
    }
)


class ModelError(EngineError):
    """A model call failed.

    Args:
        code: the class of the failure; it alone decides `retryable`.
        message: one line for people; never holds a key or a header.
        status: the provider's HTTP status, where there was one.
        retry_after_s: seconds that the provider asked to wait, where it did.

    Attributes:
        spent: what the call has taken all the same, where it broke off; set by the client that knows.
    """

    def __init__(
        self,
        code: ModelErrorCode,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.spent: Spend | None = None

    @property
    def retryable(self) -> bool:
        return self.code in RETRYABLE_CODES


def class_of_status(status: int) -> ModelErrorCode:
    """Class a provider's HTTP status; every client uses this one table."""
    match status:
        case 401 | 403:
            return ModelErrorCode.AUTHENTICATION
        case 404:
            return ModelErrorCode.MODEL_NOT_FOUND
        case 408 | 504:
            return ModelErrorCode.TIMEOUT
        case 409:
            return ModelErrorCode.CONFLICT
        case 413:
            return ModelErrorCode.CONTEXT_OVERFLOW
        case 429:
            return ModelErrorCode.RATE_LIMITED
        case _ if status >= 500:
            return ModelErrorCode.SERVER_ERROR
        case _:
            return ModelErrorCode.INVALID_REQUEST


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run failed, was interrupted, or ended degraded."""

    code: str
    message: str
    retryable: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "retryable": self.retryable}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunError:
        return cls(data["code"], data["message"], data["retryable"])
