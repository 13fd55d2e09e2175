"""Query strings and headers, as FastAPI documents and `app.api.binding` reads them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Header, Path
from pydantic import AfterValidator, Field

from app.api.schemas.fields import (
    AGENT_NAME_PATTERN,
    FROM_DECIMAL,
    FROM_DIGITS,
    FROM_TRUE_OR_FALSE,
    THREAD_ID_PATTERN,
    Moment,
    RequestModel,
)
from app.engine.events import EventType
from app.engine.interactions import InteractionStatus
from app.engine.status import RunStatus
from app.services.family_stream import SUBAGENT_EVENT
from app.services.run_queries import RunFilters

_MAX_SEQ = 2**53 - 1
_UUID_PATTERN = r"^[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$"


RunIdPath = Annotated[str, Path(description="A run's id.")]
InteractionIdPath = Annotated[str, Path(description="An interaction's id.")]
ToolCallIdPath = Annotated[str, Path(description="A tool call's id, as the run's events tell it.")]
ThreadIdPath = Annotated[str, Path(pattern=THREAD_ID_PATTERN, description="A thread's id.")]
AgentNamePath = Annotated[str, Path(pattern=AGENT_NAME_PATTERN, description="An agent's name.")]
IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[ -~]{1,255}$",
        description="The same key and body within 24 hours answer with what was created the first time, as long as "
        "that is not deleted.",
    ),
]
LastEventIdHeader = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The last event that was seen; goes before `after`.")
]

_Limit = Annotated[int, Field(ge=1, le=100), FROM_DIGITS]
_Cursor = Annotated[str | None, Field(max_length=500, description="The last page's `next_cursor`.")]
_RunId = Annotated[str, Field(pattern=_UUID_PATTERN)]
_After = Annotated[int, Field(ge=0, le=_MAX_SEQ), FROM_DIGITS]
_Version = Annotated[int, Field(ge=1, le=2**31 - 1), FROM_DIGITS]
_Flag = Annotated[bool, FROM_TRUE_OR_FALSE]
_Metadata = Annotated[
    list[Annotated[str, Field(pattern=r"^[^:]+:")]],
    Field(max_length=32, description="`KEY:VALUE`, all must hold; `metadata.KEY=VALUE` is the same."),
]
_EVENT_TYPES = (*(kind.value for kind in EventType), SUBAGENT_EVENT)


def _known_types(names: str) -> str:
    unknown = [name for name in names.split(",") if name not in _EVENT_TYPES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no type of event; the types are: {', '.join(_EVENT_TYPES)}")
    return names


_TypeNames = Annotated[
    str,
    Field(pattern=r"^[a-z_]+(,[a-z_]+)*$", max_length=2000, examples=["run_completed,run_failed"]),
    AfterValidator(_known_types),
]
_WaitS = Annotated[
    float, Field(ge=0, le=300, description="Seconds; the run is answered as it stands then."), FROM_DECIMAL
]


class PageQuery(RequestModel):
    limit: _Limit = 20
    cursor: _Cursor = None


class RunListQuery(PageQuery):
    thread_id: str | None = None
    agent: str | None = None
    status: list[RunStatus] = Field(default=[], description="Any of these.")
    parent_run_id: _RunId | None = None
    metadata: _Metadata = Field(default_factory=list[str])
    created_after: Moment | None = None
    created_before: Moment | None = None

    def filters(self) -> RunFilters:
        return RunFilters(
            thread_id=self.thread_id,
            agent=self.agent,
            statuses=self.status,
            parent_run_id=None if self.parent_run_id is None else UUID(self.parent_run_id),
            metadata=metadata_of(self.metadata),
            created_after=self.created_after,
            created_before=self.created_before,
        )


class ThreadListQuery(PageQuery):
    metadata: _Metadata = Field(default_factory=list[str])


class CreateWaitQuery(RequestModel):
    timeout_s: _WaitS = 300.0


class WaitQuery(RequestModel):
    timeout_s: _WaitS = 30.0


class SeqPageQuery(RequestModel):
    after: _After = 0
    limit: _Limit = 20


class MessageListQuery(SeqPageQuery):
    include_compacted: _Flag = Field(default=False, description="Also the messages that a summary stands for.")


class AgentQuery(RequestModel):
    version: _Version | None = Field(default=None, description="Absent: the current one.")


class StreamQuery(RequestModel):
    types: _TypeNames | None = Field(default=None, description="Only these types, with commas between them.")
    deltas: _Flag = Field(default=True, description="Whether deltas are sent.")

    def wanted(self) -> frozenset[str] | None:
        return None if self.types is None else frozenset(self.types.split(","))


class RunStreamQuery(StreamQuery):
    after: _After = Field(default=0, description="The events after this seq; 0: from the start.")
    subagents: _Flag = Field(
        default=False,
        description="Whether the events of child runs, and of theirs, are sent too, each inside a `subagent_event`. "
        "Ids are then opaque; `types` are those of the events inside, or all of them with `subagent_event`.",
    )


class InteractionListQuery(PageQuery):
    status: list[InteractionStatus] = Field(default=[], description="Any of these; absent: all.")


def metadata_of(pairs: list[str]) -> dict[str, str]:
    """`KEY:VALUE` strings as what must hold."""
    return {key: value for key, _, value in (pair.partition(":") for pair in pairs)}
