"""Threads and their messages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import json_answer, no_content, page_answer
from app.api.dependencies import REPLAYED, idempotency_of, services_of, while_connected
from app.api.errors import ProblemCode
from app.api.openapi import of_bodies, problems
from app.api.route import ApiRoute
from app.api.schemas.compaction import Compaction, ThreadCompact, compaction_object
from app.api.schemas.queries import (
    IdempotencyKeyHeader,
    MessageListQuery,
    PageQuery,
    ThreadIdPath,
    ThreadListQuery,
    metadata_of,
)
from app.api.schemas.run import RunPage, run_object
from app.api.schemas.thread import (
    Message,
    MessageAppend,
    MessagePage,
    Thread,
    ThreadCopy,
    ThreadCreate,
    ThreadDetail,
    ThreadPage,
    ThreadUpdate,
    message_object,
    thread_detail_object,
    thread_object,
)

router = APIRouter(route_class=ApiRoute, tags=["threads"])

# What an empty body means.
_ANY_THREAD = ThreadCreate()
_NO_CHANGE = ThreadUpdate()
_ALL = ThreadCopy()
_OLDER = ThreadCompact()


@router.post(
    "/threads",
    operation_id="create_thread",
    summary="Create a thread",
    status_code=201,
    response_model=Thread,
    responses=of_bodies(ProblemCode.CONFLICT, ProblemCode.IDEMPOTENCY_MISMATCH),
)
async def create_thread(
    request: Request, body: ThreadCreate = _ANY_THREAD, idempotency_key: IdempotencyKeyHeader = None
) -> Response:
    """Not needed before a run: a run or a message with an unknown thread_id makes the thread."""
    key = idempotency_of(idempotency_key, "create_thread", body)
    made = await services_of(request).threads.create(body.thread_id, body.metadata, idempotency_key=key)
    return json_answer(thread_object(made.thread), 201, REPLAYED if made.replayed else None)


@router.get(
    "/threads",
    operation_id="list_threads",
    summary="List threads, newest first",
    response_model=ThreadPage,
    responses=problems(),
)
async def list_threads(request: Request, query: Annotated[ThreadListQuery, Query()]) -> Response:
    threads = services_of(request).threads
    page = await threads.list(metadata_of(query.metadata), query.cursor, query.limit)
    return page_answer([thread_object(thread) for thread in page.items], page.next_cursor)


@router.get(
    "/threads/{thread_id}",
    operation_id="get_thread",
    summary="Get a thread",
    response_model=ThreadDetail,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def get_thread(request: Request, thread_id: ThreadIdPath) -> Response:
    return json_answer(thread_detail_object(await services_of(request).threads.get(thread_id)))


@router.patch(
    "/threads/{thread_id}",
    operation_id="update_thread",
    summary="Change a thread's metadata",
    response_model=Thread,
    responses=of_bodies(ProblemCode.NOT_FOUND),
)
async def update_thread(request: Request, thread_id: ThreadIdPath, body: ThreadUpdate = _NO_CHANGE) -> Response:
    """What is given is merged into what is there; null takes a key away."""
    return json_answer(thread_object(await services_of(request).threads.update(thread_id, body.metadata)))


@router.delete(
    "/threads/{thread_id}",
    operation_id="delete_thread",
    summary="Delete a thread with its messages and runs",
    status_code=204,
    responses=problems(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT),
)
async def delete_thread(request: Request, thread_id: ThreadIdPath) -> Response:
    """Refused while one of its runs is not over."""
    await services_of(request).threads.delete(thread_id)
    return no_content()


@router.get(
    "/threads/{thread_id}/messages",
    operation_id="list_messages",
    summary="List a thread's messages, oldest first",
    response_model=MessagePage,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def list_messages(
    request: Request, thread_id: ThreadIdPath, query: Annotated[MessageListQuery, Query()]
) -> Response:
    """An agent's own system message is never among them."""
    page = await services_of(request).threads.list_messages(
        thread_id, query.after, query.limit, include_compacted=query.include_compacted
    )
    return page_answer([message_object(message) for message in page.items], page.next_cursor)


@router.post(
    "/threads/{thread_id}/messages",
    operation_id="append_message",
    summary="Append a message",
    status_code=201,
    response_model=Message,
    responses=of_bodies(ProblemCode.IDEMPOTENCY_MISMATCH),
)
async def append_message(
    request: Request, thread_id: ThreadIdPath, body: MessageAppend, idempotency_key: IdempotencyKeyHeader = None
) -> Response:
    """A run that is under way sees it from its next model call."""
    key = idempotency_of(idempotency_key, f"append_message {thread_id}", body)
    appended = await services_of(request).threads.append_message(thread_id, body.message(), idempotency_key=key)
    return json_answer(message_object(appended.message), 201, REPLAYED if appended.replayed else None)


@router.post(
    "/threads/{thread_id}/compact",
    operation_id="compact_thread",
    summary="Let a model summarise a thread's older messages",
    response_model=Compaction,
    responses=of_bodies(ProblemCode.NOT_FOUND, ProblemCode.THREAD_BUSY, ProblemCode.CONFLICT),
)
async def compact_thread(request: Request, thread_id: ThreadIdPath, body: ThreadCompact = _OLDER) -> Response:
    """Later runs see the summary instead; the messages stay readable (`include_compacted`) until they are purged."""
    done = await while_connected(request, services_of(request).compaction.compact(body.command(thread_id)))
    return no_content() if done is None else json_answer(compaction_object(done))


@router.get(
    "/threads/{thread_id}/runs",
    operation_id="list_thread_runs",
    summary="List a thread's runs, newest first",
    response_model=RunPage,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def list_thread_runs(request: Request, thread_id: ThreadIdPath, query: Annotated[PageQuery, Query()]) -> Response:
    """Results are not loaded: `result` is null."""
    page = await services_of(request).threads.list_runs(thread_id, query.cursor, query.limit)
    return page_answer([run_object(run, with_result=False) for run in page.items], page.next_cursor)


@router.post(
    "/threads/{thread_id}/copy",
    operation_id="copy_thread",
    summary="Copy a thread's messages into a new thread",
    status_code=201,
    response_model=Thread,
    responses=of_bodies(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT, ProblemCode.IDEMPOTENCY_MISMATCH),
)
async def copy_thread(
    request: Request,
    thread_id: ThreadIdPath,
    body: ThreadCopy = _ALL,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Response:
    """The copy goes on by itself; runs stay with the original."""
    key = idempotency_of(idempotency_key, f"copy_thread {thread_id}", body)
    made = await services_of(request).threads.copy(thread_id, body.thread_id, body.up_to_seq, idempotency_key=key)
    return json_answer(thread_object(made.thread), 201, REPLAYED if made.replayed else None)
