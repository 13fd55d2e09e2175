"""The service itself."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.api.answers import json_answer
from app.api.dependencies import services_of
from app.api.errors import unavailable
from app.api.openapi import problems
from app.api.route import ApiRoute
from app.api.schemas.service import METRICS_EXAMPLE, Alive, Info, Ready
from app.telemetry.metrics import MEDIA_TYPE

router = APIRouter(route_class=ApiRoute, tags=["service"])


@router.get(
    "/healthz",
    operation_id="healthz",
    summary="Whether the process answers",
    response_model=Alive,
    responses=problems(),
)
async def healthz(request: Request) -> Response:
    return json_answer({"status": "ok"})


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Whether this replica can do its work",
    response_model=Ready,
    responses=problems(),
)
async def readyz(request: Request) -> Response:
    """503 with the reason while the database is away, migrations are missing, or the replica drains or is broken."""
    reason = await services_of(request).health.unready_reason()
    return json_answer({"status": "ready"}) if reason is None else unavailable(request, reason)


@router.get(
    "/info",
    operation_id="info",
    summary="What this service is and can do",
    response_model=Info,
    responses=problems(),
)
async def info(request: Request) -> Response:
    return json_answer(services_of(request).health.info())


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="The metrics of this replica",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Prometheus' text format. Each replica tells only what it did itself.",
            "content": {"text/plain": {"example": METRICS_EXAMPLE}},
        },
        **problems(),
    },
)
async def metrics(request: Request) -> Response:
    return Response(services_of(request).metrics.exposition(), media_type=MEDIA_TYPE)
