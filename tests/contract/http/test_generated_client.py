"""A client generated from the OpenAPI document alone works against the service."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.acceptance.service import Service
from tests.clients.generate import python


def test_a_generated_python_client_type_checks_and_runs_a_run(service: Service, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx.get(f"{service.url}/openapi.json", trust_env=False).content)
    python(document, tmp_path / "python", service.url)  # ends the program if the client does not do what it should
    assert (tmp_path / "python" / "agent_runner_client" / "api" / "runs" / "create_run_and_wait.py").exists()
