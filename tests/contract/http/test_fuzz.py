"""Whatever a caller sends, it gets an answer that the document knows, and what does not fit the document is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.service import Service

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
)
# Their events are checked where they are sent; here a stream would be taken for one string, or never end.
STREAMS = ("create_run_and_stream", "stream_run_events", "stream_thread_events")


def fuzz(
    url: str, folder: Path, phase: str, examples: int, seed: int, *, sparing: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Send the service what its document allows and what it does not; 0 is returned if all answers are as documented.

    Args:
        folder: where schemathesis may leave files.
        phase: `coverage` or `fuzzing`.
        examples: the most requests of each kind for one operation.
        sparing: ids of operations that are left out; it finds the ids of others' runs in lists, and uses them.
    """
    options = ["--phases", phase, "--checks", ",".join(CHECKS), "--max-examples", str(examples), "--seed", str(seed)]
    options += ["--request-timeout", "20", "--generation-database", "none", "--no-color"]
    for operation_id in (*STREAMS, *sparing):
        options += ["--exclude-operation-id", operation_id]
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", *options]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
def test_no_request_meets_an_answer_that_is_not_documented(service: Service, tmp_path: Path, phase: str) -> None:
    done = fuzz(service.url, tmp_path, phase, examples=15, seed=1)
    assert done.returncode == 0, done.stdout + done.stderr
