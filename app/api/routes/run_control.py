"""Steering runs."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import raw_answer
from app.api.dependencies import services_of
from app.api.errors import ProblemCode
from app.api.openapi import of_bodies
from app.api.route import ApiRoute
from app.api.schemas.queries import RunIdPath
from app.api.schemas.run import Run, run_json
from app.api.schemas.run_create import RunResume

router = APIRouter(route_class=ApiRoute, tags=["runs"])

_AS_IT_WAS = RunResume()


@router.post(
    "/runs/{run_id}/pause",
    operation_id="pause_run",
    summary="Pause a run",
    response_model=Run,
    responses=of_bodies(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT),
)
async def pause_run(request: Request, run_id: RunIdPath) -> Response:
    """At once, or, for a running one, at the end of its step: then it is answered with `pause_requested`."""
    return raw_answer(run_json(await services_of(request).runs.pause(run_id)))


@router.post(
    "/runs/{run_id}/resume",
    operation_id="resume_run",
    summary="Let a run go on from its last checkpoint",
    response_model=Run,
    responses=of_bodies(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT, ProblemCode.LIMIT_REACHED),
)
async def resume_run(request: Request, run_id: RunIdPath, body: RunResume = _AS_IT_WAS) -> Response:
    """For paused, failed and interrupted runs; takes back a pause that was asked for."""
    return raw_answer(run_json(await services_of(request).runs.resume(run_id, body.limits)))


@router.post(
    "/runs/{run_id}/cancel",
    operation_id="cancel_run",
    summary="Cancel a run for good",
    response_model=Run,
    responses=of_bodies(ProblemCode.NOT_FOUND),
)
async def cancel_run(request: Request, run_id: RunIdPath) -> Response:
    """The run is answered cancelled already; one that is over stays as it is."""
    return raw_answer(run_json(await services_of(request).runs.cancel(run_id)))


@router.post(
    "/runs/{run_id}/interrupt",
    operation_id="interrupt_run",
    summary="Interrupt a run; it may be resumed",
    response_model=Run,
    responses=of_bodies(ProblemCode.NOT_FOUND),
)
async def interrupt_run(request: Request, run_id: RunIdPath) -> Response:
    """The run is answered interrupted already; one that is over stays as it is."""
    return raw_answer(run_json(await services_of(request).runs.interrupt(run_id)))
