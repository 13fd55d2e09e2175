"""Long-term memories.

Namespaces hold slashes, and keys may: both stand in the query or the body, never in a path, where a proxy or a client
might take them apart.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import json_answer, no_content, page_answer
from app.api.dependencies import services_of
from app.api.errors import ProblemCode
from app.api.openapi import of_bodies, problems
from app.api.route import ApiRoute
from app.api.schemas.memory import (
    MemoriesDeleted,
    Memory,
    MemoryListQuery,
    MemoryPage,
    MemoryPut,
    MemoryQuery,
    MemorySearch,
    MemorySearchResult,
    NamespaceQuery,
    deleted_object,
    found_object,
    memory_object,
    place_of,
)

router = APIRouter(route_class=ApiRoute, tags=["memories"])


@router.put(
    "/memories",
    operation_id="put_memory",
    summary="Keep a memory",
    response_model=Memory,
    responses={201: {"model": Memory, "description": "There was nothing under the key."}, **of_bodies()},
)
async def put_memory(request: Request, body: MemoryPut) -> Response:
    """In place of what was under the key. It is found by its words at once, and by its meaning once it is embedded."""
    put = await services_of(request).memories.put(place_of(body.namespace), body.memory())
    return json_answer(memory_object(put.record), 201 if put.created else 200)


@router.get(
    "/memories",
    operation_id="list_memories",
    summary="List a namespace's memories by key",
    response_model=MemoryPage,
    responses=problems(),
)
async def list_memories(request: Request, query: Annotated[MemoryListQuery, Query()]) -> Response:
    """A namespace that has none is empty."""
    page = await services_of(request).memories.list(place_of(query.namespace), query.cursor, query.limit)
    return page_answer([memory_object(record) for record in page.items], page.next_cursor)


@router.delete(
    "/memories",
    operation_id="delete_memories",
    summary="Delete all memories of a namespace",
    response_model=MemoriesDeleted,
    responses=problems(),
)
async def delete_memories(request: Request, query: Annotated[NamespaceQuery, Query()]) -> Response:
    """Those of that very namespace: what is in `users/42/trips` is not in `users/42`."""
    return json_answer(deleted_object(await services_of(request).memories.delete_all(place_of(query.namespace))))


@router.get(
    "/memories/item",
    operation_id="get_memory",
    summary="Get a memory",
    response_model=Memory,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def get_memory(request: Request, query: Annotated[MemoryQuery, Query()]) -> Response:
    return json_answer(memory_object(await services_of(request).memories.get(place_of(query.namespace), query.key)))


@router.delete(
    "/memories/item",
    operation_id="delete_memory",
    summary="Delete a memory",
    status_code=204,
    responses=problems(ProblemCode.NOT_FOUND),
)
async def delete_memory(request: Request, query: Annotated[MemoryQuery, Query()]) -> Response:
    await services_of(request).memories.delete(place_of(query.namespace), query.key)
    return no_content()


@router.post(
    "/memories/search",
    operation_id="search_memories",
    summary="Search a namespace's memories",
    response_model=MemorySearchResult,
    responses=of_bodies(),
)
async def search_memories(request: Request, body: MemorySearch) -> Response:
    """By words, and by meaning where the service has an embedding model and the database pgvector."""
    found = await services_of(request).memories.search(place_of(body.namespace), body.query, body.limit)
    return json_answer(found_object(found))
