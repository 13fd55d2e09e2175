"""Agents and tools."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import json_answer, no_content, page_answer
from app.api.dependencies import services_of
from app.api.errors import InvalidRequest, ProblemCode
from app.api.openapi import of_bodies, problems
from app.api.route import ApiRoute
from app.api.schemas.agent import Agent, AgentPage, AgentPut, ToolPage, agent_object, tool_object
from app.api.schemas.queries import AgentNamePath, AgentQuery, PageQuery

router = APIRouter(route_class=ApiRoute, tags=["agents"])


@router.put(
    "/agents/{name}",
    operation_id="put_agent",
    summary="Save an agent",
    response_model=Agent,
    responses={
        201: {"model": Agent, "description": "There was no agent of that name."},
        **of_bodies(ProblemCode.UNKNOWN_TOOL, ProblemCode.CONFLICT),
    },
)
async def put_agent(request: Request, name: AgentNamePath, body: AgentPut) -> Response:
    """Each change makes a new version, the same content none."""
    if body.name not in (None, name):
        raise InvalidRequest.at("should be the name in the path, or absent", "body", "name")
    saved = await services_of(request).agents.put(name, body.settings())
    return json_answer(agent_object(saved.record), 201 if saved.created else 200)


@router.get(
    "/agents",
    operation_id="list_agents",
    summary="List agents by name",
    response_model=AgentPage,
    responses=problems(),
)
async def list_agents(request: Request, query: Annotated[PageQuery, Query()]) -> Response:
    """Each at its current version."""
    page = await services_of(request).agents.list(query.cursor, query.limit)
    return page_answer([agent_object(agent) for agent in page.items], page.next_cursor)


@router.get(
    "/agents/{name}",
    operation_id="get_agent",
    summary="Get an agent",
    response_model=Agent,
    responses=problems(ProblemCode.UNKNOWN_AGENT),
)
async def get_agent(request: Request, name: AgentNamePath, query: Annotated[AgentQuery, Query()]) -> Response:
    return json_answer(agent_object(await services_of(request).agents.get(name, query.version)))


@router.get(
    "/agents/{name}/versions",
    operation_id="list_agent_versions",
    summary="List an agent's versions, newest first",
    response_model=AgentPage,
    responses=problems(ProblemCode.UNKNOWN_AGENT),
)
async def list_agent_versions(request: Request, name: AgentNamePath, query: Annotated[PageQuery, Query()]) -> Response:
    page = await services_of(request).agents.versions(name, query.cursor, query.limit)
    return page_answer([agent_object(agent) for agent in page.items], page.next_cursor)


@router.delete(
    "/agents/{name}",
    operation_id="delete_agent",
    summary="Delete an agent",
    status_code=204,
    responses=problems(ProblemCode.UNKNOWN_AGENT, ProblemCode.CONFLICT),
)
async def delete_agent(request: Request, name: AgentNamePath) -> Response:
    """Its runs keep the version that they started with."""
    await services_of(request).agents.delete(name)
    return no_content()


@router.get(
    "/tools",
    operation_id="list_tools",
    summary="List the tools that agents may name",
    response_model=ToolPage,
    responses=problems(),
)
async def list_tools(request: Request, query: Annotated[PageQuery, Query()]) -> Response:
    """In the order of their names; not those that an agent declares for itself."""
    page = services_of(request).tools.list(query.cursor, query.limit)
    return page_answer([tool_object(spec) for spec in page.items], page.next_cursor)
