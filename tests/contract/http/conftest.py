"""One service that all tests here share, and its own OpenAPI document to hold its answers against."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import httpx
import jsonschema_rs
import pytest

from tests.acceptance.service import Service
from tests.conftest import database_of

Fits = Callable[[str, httpx.Response], Any]


# What `scripted/lead` says: it delegates twice at once, and reports.
LEAD = """
- tool_calls:
    - {name: delegate_to_calculator, arguments: {task: "What is 2 * 3?"}, id: left}
    - {name: delegate_to_calculator, arguments: {task: "What is 4 * 5?"}, id: right}
- text: "They say: {{ last_tool_output }}"
"""


@pytest.fixture(scope="session")
def service(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    name = f"contract_{os.getpid()}"
    folder = tmp_path_factory.mktemp("service")
    scripts = folder / "agents" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "lead.yaml").write_text(LEAD)
    asyncio.run(_execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE template_runs"))
    service = Service({"DATABASE_URL": database_of(postgres_server, name)}, folder)
    try:
        yield service.ready()
    finally:
        service.stop()
        asyncio.run(_execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def document(service: Service) -> dict[str, Any]:
    return httpx.get(f"{service.url}/openapi.json", trust_env=False).json()


@pytest.fixture(scope="session")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The document's operations by their ids."""
    methods = (operation for path in document["paths"].values() for operation in path.values())
    return {operation["operationId"]: operation for operation in methods}


@pytest.fixture
def fits(document: dict[str, Any], operations: dict[str, dict[str, Any]]) -> Fits:
    """Holds an answer against what the document says of an operation; gives its JSON, if it has any."""

    def check(operation_id: str, answer: httpx.Response) -> Any:
        described = operations[operation_id]["responses"][str(answer.status_code)]
        for name, header in described.get("headers", {}).items():
            assert name in answer.headers or not header.get("required", True), name
        content: dict[str, Any] = described.get("content", {})
        if not content:
            assert answer.content == b""
            return None
        media_type = answer.headers["content-type"]
        assert media_type in content
        if media_type == "text/event-stream":
            return None
        schema = {**content[media_type]["schema"], "components": document["components"]}
        jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(answer.json())
        return answer.json()

    return check


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
