"""The HTTP application over services that answer what a test tells them to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi import FastAPI

from app.api import build_api

MAX_BODY_BYTES = 10_000


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield


class StubServices(SimpleNamespace):
    """Services by name; each test puts in the ones that its requests reach."""


@pytest.fixture
def services() -> StubServices:
    return StubServices(health=SimpleNamespace(draining=False))


@pytest.fixture
def app(services: StubServices) -> FastAPI:
    app = build_api(lifespan=_no_lifespan, max_body_bytes=MAX_BODY_BYTES)
    app.state.services = services
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    return build_api(lifespan=_no_lifespan, max_body_bytes=MAX_BODY_BYTES).openapi()


@pytest.fixture(scope="session")
def check(document: dict[str, Any]) -> Callable[[str, object], None]:
    """Holds a value against a schema of the document, by name."""

    def against(name: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(value)

    return against
