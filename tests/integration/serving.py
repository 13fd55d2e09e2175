"""A replica at work in the test's own event loop, and a caller of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from app.api import build_api
from app.replica.description import MAX_BODY_BYTES
from app.replica.lifespan import running_replica
from app.settings import Settings


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a replica that is at work."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    async with running_replica(settings) as replica:
        app = build_api(lifespan=lifespan, max_body_bytes=MAX_BODY_BYTES)
        app.state.services = replica.services
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
            yield client
