"""What runs wait for: people's answers, and results of tool calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import json_answer, page_answer
from app.api.dependencies import services_of
from app.api.errors import ProblemCode
from app.api.openapi import of_bodies, problems
from app.api.route import ApiRoute
from app.api.schemas.interaction import (
    Interaction,
    InteractionPage,
    InteractionResolve,
    ToolResultReceipt,
    ToolResultSubmit,
    interaction_object,
    receipt_object,
)
from app.api.schemas.queries import InteractionIdPath, InteractionListQuery, PageQuery, RunIdPath, ToolCallIdPath

router = APIRouter(route_class=ApiRoute, tags=["interactions"])


@router.get(
    "/interactions",
    operation_id="list_interactions",
    summary="List the questions of all runs, oldest first",
    response_model=InteractionPage,
    responses=problems(),
)
async def list_interactions(request: Request, query: Annotated[InteractionListQuery, Query()]) -> Response:
    """`status=pending` is the inbox of whoever answers."""
    page = await services_of(request).interactions.list_all(query.status, query.cursor, query.limit)
    return page_answer([interaction_object(interaction) for interaction in page.items], page.next_cursor)


@router.get(
    "/runs/{run_id}/interactions",
    operation_id="list_run_interactions",
    summary="List a run's questions, oldest first",
    response_model=InteractionPage,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def list_run_interactions(request: Request, run_id: RunIdPath, query: Annotated[PageQuery, Query()]) -> Response:
    """Of the run itself; its child runs have their own."""
    page = await services_of(request).interactions.list_run(run_id, query.cursor, query.limit)
    return page_answer([interaction_object(interaction) for interaction in page.items], page.next_cursor)


@router.post(
    "/runs/{run_id}/interactions/{interaction_id}",
    operation_id="resolve_interaction",
    summary="Answer a question",
    response_model=Interaction,
    responses=of_bodies(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT),
)
async def resolve_interaction(
    request: Request, run_id: RunIdPath, interaction_id: InteractionIdPath, body: InteractionResolve
) -> Response:
    """The run goes on. The same decision again changes nothing, another one is refused."""
    resolved = await services_of(request).interactions.resolve(run_id, interaction_id, body.resolution())
    return json_answer(interaction_object(resolved))


@router.post(
    "/runs/{run_id}/tool-calls/{tool_call_id:path}/result",
    operation_id="submit_tool_result",
    summary="Give a tool call its result",
    response_model=ToolResultReceipt,
    responses=of_bodies(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT),
)
async def submit_tool_result(
    request: Request, run_id: RunIdPath, tool_call_id: ToolCallIdPath, body: ToolResultSubmit
) -> Response:
    """For any call that has none yet. The same result again changes nothing, another one is refused."""
    output, error = body.result()
    stimulated = await services_of(request).runs.post_result(run_id, tool_call_id, output, error)
    return json_answer(receipt_object(tool_call_id, stimulated))
