"""Why a use case was refused.

ServiceError
├── NotFound          there is no such thing
├── UnknownAgent      the named agent, or that version of it, does not exist
├── Invalid           the request names something that cannot be; `loc` says where
│   └── UnknownTool
├── Conflict          what exists forbids it; `current_status` where it is a run's status
├── ModelUnavailable  a model that the request itself needs did not do its part; try again in `retry_after_s`
├── TooManyRuns       the queue is full; try again in `retry_after_s`
└── EventsTrimmed     the cursor is behind what retention kept; `first_seq` is the first event left

The store's own errors (`app.engine.store_errors`) pass through the services as they are.
"""

from __future__ import annotations

from collections.abc import Sequence


class ServiceError(Exception):
    """Root of what the services raise; the message is written for the caller."""


class NotFound(ServiceError):
    pass


class UnknownAgent(ServiceError):
    pass


class Invalid(ServiceError):
    """A value that has the right form and cannot be accepted.

    Args:
        message: what is wrong and what to do instead.
        loc: the path of the field, such as `("body", "model")`.
    """

    def __init__(self, message: str, loc: Sequence[str | int]) -> None:
        super().__init__(message)
        self.loc = tuple(loc)


class UnknownTool(Invalid):
    pass


class Conflict(ServiceError):
    def __init__(self, message: str, current_status: str | None = None) -> None:
        super().__init__(message)
        self.current_status = current_status


class TooManyRuns(ServiceError):
    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelUnavailable(ServiceError):
    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EventsTrimmed(ServiceError):
    def __init__(self, first_seq: int) -> None:
        super().__init__(f"events before {first_seq} are no longer kept")
        self.first_seq = first_seq
