"""Forking runs."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import raw_answer
from app.api.dependencies import REPLAYED, idempotency_of, services_of
from app.api.errors import ProblemCode
from app.api.openapi import of_bodies
from app.api.route import ApiRoute
from app.api.schemas.fork import RunFork
from app.api.schemas.queries import IdempotencyKeyHeader, RunIdPath
from app.api.schemas.run import Run, run_json

router = APIRouter(route_class=ApiRoute, tags=["runs"])

# What an empty body means.
_AS_IT_IS = RunFork()


@router.post(
    "/runs/{run_id}/fork",
    operation_id="fork_run",
    summary="Fork a run from a checkpoint",
    status_code=202,
    response_model=Run,
    responses={
        202: {"headers": {"Location": {"description": "The fork.", "schema": {"type": "string"}}}},
        **of_bodies(
            ProblemCode.NOT_FOUND,
            ProblemCode.UNKNOWN_AGENT,
            ProblemCode.UNKNOWN_TOOL,
            ProblemCode.IDEMPOTENCY_MISMATCH,
            ProblemCode.CONFLICT,
            ProblemCode.TOO_MANY_RUNS,
        ),
    },
)
async def fork_run(
    request: Request, run_id: RunIdPath, body: RunFork = _AS_IT_IS, idempotency_key: IdempotencyKeyHeader = None
) -> Response:
    """A new run on a new thread that begins with the messages as of the checkpoint. The run that is forked may have any
    status and stays as it is; calls that it left open are not executed by the fork."""
    key = idempotency_of(idempotency_key, f"fork_run {run_id}", body)
    created = await services_of(request).forks.fork(body.command(run_id), key)
    headers = {"Location": f"/runs/{created.run.run_id}"}
    return raw_answer(run_json(created.run), 202, headers | REPLAYED if created.replayed else headers)
