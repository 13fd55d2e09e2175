"""Creating runs, and reading them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import json_answer, no_content, page_answer, raw_answer
from app.api.dependencies import REPLAYED, idempotency_of, services_of, while_connected
from app.api.errors import ProblemCode
from app.api.openapi import of_bodies, problems, stream
from app.api.route import ApiRoute
from app.api.schemas.queries import (
    CreateWaitQuery,
    IdempotencyKeyHeader,
    RunIdPath,
    RunListQuery,
    WaitQuery,
)
from app.api.schemas.run import Run, RunPage, RunsCreated, run_json, run_object
from app.api.schemas.run_create import RunCreate, RunsCreate
from app.api.sse import event_stream, numbered
from app.engine.ownership import Created
from app.engine.records import OnDisconnect, RunRecord
from app.engine.store_errors import StoreError
from app.services.container import Services
from app.telemetry.logs import get_logger

router = APIRouter(route_class=ApiRoute, tags=["runs"])

_log = get_logger(__name__)

_ONE = "create_run"
_MANY = "create_runs"
_CREATING = (
    ProblemCode.UNKNOWN_AGENT,
    ProblemCode.UNKNOWN_TOOL,
    ProblemCode.IDEMPOTENCY_MISMATCH,
    ProblemCode.THREAD_BUSY,
    ProblemCode.TOO_MANY_RUNS,
)


@router.post(
    "/runs",
    operation_id="create_run",
    summary="Create a run",
    status_code=202,
    response_model=Run,
    responses={
        202: {"headers": {"Location": {"description": "The run.", "schema": {"type": "string"}}}},
        **of_bodies(*_CREATING),
    },
)
async def create_run(request: Request, body: RunCreate, idempotency_key: IdempotencyKeyHeader = None) -> Response:
    """Answers as soon as the run is stored; it starts as soon as a replica has room."""
    created = await _create(services_of(request), body, idempotency_key)
    headers = {"Location": f"/runs/{created.run.run_id}"}
    return raw_answer(run_json(created.run), 202, headers | REPLAYED if created.replayed else headers)


@router.post(
    "/runs/wait",
    operation_id="create_run_and_wait",
    summary="Create a run and wait for its end",
    response_model=Run,
    responses=of_bodies(*_CREATING),
)
async def create_run_and_wait(
    request: Request,
    body: RunCreate,
    query: Annotated[CreateWaitQuery, Query()],
    idempotency_key: IdempotencyKeyHeader = None,
) -> Response:
    """Answers with the run once it is terminal, paused or waits for someone outside, or as it stands at the timeout."""
    services = services_of(request)
    services.runs.stays()
    created = await _create(services, body, idempotency_key)
    run = created.run
    waiting = services.runs.wait(run.run_id, query.timeout_s, just_started=created.claim is not None)
    waited = await while_connected(request, waiting)
    if waited is None:
        await _caller_left(services, run)
        return no_content()
    return raw_answer(run_json(waited), 200, REPLAYED if created.replayed else None)


@router.post(
    "/runs/stream",
    operation_id="create_run_and_stream",
    summary="Create a run and stream its events",
    responses={**of_bodies(*_CREATING), **stream(*_CREATING, Run_Id="The run's id.")},
)
async def create_run_and_stream(
    request: Request, body: RunCreate, idempotency_key: IdempotencyKeyHeader = None
) -> Response:
    """The stream ends with the run. A reader that loses it goes on at `/runs/{run_id}/events`."""
    services = services_of(request)
    services.runs.stays()
    created = await _create(services, body, idempotency_key)
    run = created.run
    events = await services.streams.open_run(run.run_id, 0, types=None, deltas=True, reconnect=False)
    if events is None:
        return no_content()
    headers = {"Run-Id": run.run_id}
    return event_stream(
        numbered(events),
        headers=headers | REPLAYED if created.replayed else headers,
        on_disconnect=lambda: _caller_left(services, run),
    )


@router.post(
    "/runs/batch",
    operation_id="create_runs",
    summary="Create up to 100 runs, all or none",
    status_code=202,
    response_model=RunsCreated,
    responses=of_bodies(*_CREATING),
)
async def create_runs(request: Request, body: RunsCreate, idempotency_key: IdempotencyKeyHeader = None) -> Response:
    """The runs are answered in the order in which they were asked for."""
    key = idempotency_of(idempotency_key, _MANY, body)
    created = await services_of(request).runs.create_many([item.command() for item in body.items], key)
    items = [run_object(run) for run in created.runs]
    return json_answer({"items": items}, 202, REPLAYED if created.replayed else None)


@router.get(
    "/runs",
    operation_id="list_runs",
    summary="List runs, newest first",
    response_model=RunPage,
    responses=problems(),
)
async def list_runs(request: Request, query: Annotated[RunListQuery, Query()]) -> Response:
    """Results are not loaded: `result` is null."""
    page = await services_of(request).run_queries.list(query.filters(), query.cursor, query.limit)
    return page_answer([run_object(run, with_result=False) for run in page.items], page.next_cursor)


@router.get(
    "/runs/{run_id}",
    operation_id="get_run",
    summary="Get a run",
    response_model=Run,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def get_run(request: Request, run_id: RunIdPath) -> Response:
    return raw_answer(run_json(await services_of(request).runs.get(run_id)))


@router.get(
    "/runs/{run_id}/wait",
    operation_id="wait_run",
    summary="Wait for a run's end",
    response_model=Run,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def wait_run(request: Request, run_id: RunIdPath, query: Annotated[WaitQuery, Query()]) -> Response:
    """Answers with the run once it is terminal, paused or waits for someone outside, or as it stands at the timeout."""
    run = await while_connected(request, services_of(request).runs.wait(run_id, query.timeout_s))
    return no_content() if run is None else raw_answer(run_json(run))


@router.delete(
    "/runs/{run_id}",
    operation_id="delete_run",
    summary="Delete a run that is over, and its child runs",
    status_code=204,
    responses=problems(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT),
)
async def delete_run(request: Request, run_id: RunIdPath) -> Response:
    """Its messages stay in the thread."""
    await services_of(request).runs.delete(run_id)
    return no_content()


async def _create(services: Services, body: RunCreate, key: str | None) -> Created:
    # The three ways to create a run share one operation: a client may come back for the same run another way.
    return await services.runs.create(body.command(), idempotency_of(key, _ONE, body))


async def _caller_left(services: Services, run: RunRecord) -> None:
    if run.on_disconnect is not OnDisconnect.CANCEL:
        return
    try:
        await services.runs.cancel(run.run_id)
    except StoreError as error:
        # There is nobody left to tell; the run goes on as one whose caller stayed.
        _log.warning("cancel_on_disconnect_failed", run_id=run.run_id, reason=str(error))
