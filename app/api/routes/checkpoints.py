"""Checkpoints of runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import json_answer, page_answer
from app.api.dependencies import services_of
from app.api.errors import ProblemCode
from app.api.openapi import problems
from app.api.route import ApiRoute
from app.api.schemas.checkpoint import (
    CheckpointPage,
    CheckpointWithState,
    checkpoint_detail_object,
    checkpoint_object,
)
from app.api.schemas.queries import PageQuery, RunIdPath

router = APIRouter(route_class=ApiRoute, tags=["runs"])


@router.get(
    "/runs/{run_id}/checkpoints",
    operation_id="list_checkpoints",
    summary="List a run's checkpoints, oldest first",
    response_model=CheckpointPage,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def list_checkpoints(request: Request, run_id: RunIdPath, query: Annotated[PageQuery, Query()]) -> Response:
    """At least one for each step."""
    page = await services_of(request).run_queries.list_checkpoints(run_id, query.cursor, query.limit)
    return page_answer([checkpoint_object(checkpoint) for checkpoint in page.items], page.next_cursor)


@router.get(
    "/runs/{run_id}/checkpoints/{checkpoint_id}",
    operation_id="get_checkpoint",
    summary="Get a checkpoint with its state and messages",
    response_model=CheckpointWithState,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def get_checkpoint(
    request: Request, run_id: RunIdPath, checkpoint_id: Annotated[str, Path(description="A checkpoint's id.")]
) -> Response:
    """The messages are those of the thread as of the checkpoint."""
    detail = await services_of(request).run_queries.get_checkpoint(run_id, checkpoint_id)
    return json_answer(checkpoint_detail_object(detail))
