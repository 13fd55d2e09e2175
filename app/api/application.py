"""The HTTP application, put together."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import Lifespan

from app.api.errors import register_error_handlers
from app.api.middleware import RequestEdge
from app.api.openapi import document_of
from app.api.routes import (
    agents,
    checkpoints,
    events,
    forks,
    interactions,
    memories,
    run_control,
    runs,
    service,
    threads,
)

_DESCRIPTION = (
    "Runs LLM agents durably: a run survives crashes, restarts and redeploys. Errors are `application/problem+json`. "
    "Lists answer `items` and `next_cursor`, which is passed back to get the next page."
)
_TAGS = [
    {"name": "runs", "description": "Executions of agents."},
    {"name": "interactions", "description": "What runs wait for: people's answers, and results of tool calls."},
    {"name": "events", "description": "What happens in runs, live and afterwards."},
    {"name": "threads", "description": "Conversations that runs read and extend."},
    {"name": "memories", "description": "What agents and their callers keep beyond conversations."},
    {"name": "agents", "description": "Agents and the tools that they may name."},
    {"name": "service", "description": "The service itself."},
]


def build_api(*, lifespan: Lifespan[FastAPI], max_body_bytes: int) -> FastAPI:
    """The application, without a replica behind it.

    Args:
        lifespan: puts `Services` into `app.state.services` for as long as it lasts.
        max_body_bytes: the longest body that is read.
    """
    # Routes are given as they are: a router that is included answers every request through a second one.
    routers = (runs, run_control, interactions, events, checkpoints, forks, threads, memories, agents, service)
    app = FastAPI(
        title="agent-runner",
        summary="An HTTP service that runs LLM agents durably on Postgres.",
        description=_DESCRIPTION,
        version=version("agent-runner"),
        openapi_tags=_TAGS,
        routes=[route for module in routers for route in module.router.routes],
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        # Asks the environment on every request whether there is anybody to tell (15 µs); nothing is exported yet.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.max_body_bytes = max_body_bytes
    app.add_middleware(RequestEdge)
    register_error_handlers(app)
    app.openapi = document_of(app)
    return app
