"""The service under test and what it needs: a Postgres, a model server, and settings that point to them.

Everything runs beside the benchmark in processes of its own, in a folder that goes away with it. The Postgres is
started by the benchmark and not by the service, so that it is no part of the service's process tree.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import yaml

from app.db.embedded import EmbeddedPostgres
from app.db.embedded.postmaster import Postmaster
from app.settings import Settings
from benchmarks.collector import COLLECTING
from benchmarks.measure import ProcessTree
from benchmarks.model_server import LISTENING
from benchmarks.workloads import WORKLOADS

_PROJECT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.005
_LOG_TAIL_LINES = 20
_POSTGRES_SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


class CannotStart(Exception):
    """A part of the set-up did not start; the text is for a person and ends with what the program said."""


@dataclass(frozen=True, slots=True)
class Stage:
    """All that runs while workloads are measured.

    Args:
        url: the service's address.
        ready_s: seconds from the service's start until it said that it serves.
        postgres: the database's version and the settings that decide how safe and how fast it writes.
    """

    url: str
    service: ProcessTree
    database: ProcessTree
    model_server: ProcessTree
    service_pid: int
    ready_s: float
    postgres: dict[str, str]


@contextmanager
def running_stage(workers: int, telemetry: str = "none") -> Generator[Stage]:
    """Start Postgres, the model server and the service; end them all afterwards.

    Args:
        workers: the service's replica processes.
        telemetry: the service's TELEMETRY; with `otel` it exports to a collector that is started as well.

    Raises:
        CannotStart: the model server, the migration or the service failed or took too long.
        EmbeddedPostgresError: there is no Postgres to be had.
    """
    # Postgres may have to leave files of another owner behind.
    with tempfile.TemporaryDirectory(prefix="agent-runner-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (
            _postgres(folder / "data") as (database_url, database_pid),
            _model_server(folder) as (base_url, model_pid),
            ExitStack() as stack,
        ):
            environment = _environment(folder, database_url, base_url, workers)
            _migrate(folder, environment)
            environment |= {"TELEMETRY": telemetry} | stack.enter_context(_collector(folder, telemetry))
            begun = time.perf_counter()
            with _program("agent-runner", [_agent_runner(), "serve"], folder, environment) as service:
                url = service.wait_for(r"ready on (http://\S+)")
                yield Stage(
                    url=url,
                    service=ProcessTree(service.pid),
                    database=ProcessTree(database_pid),
                    model_server=ProcessTree(model_pid),
                    service_pid=service.pid,
                    ready_s=time.perf_counter() - begun,
                    postgres=asyncio.run(_postgres_settings(database_url)),
                )


@contextmanager
def _postgres(data_dir: Path) -> Generator[tuple[str, int]]:
    """The URL of a new database, and its server's process id."""
    server = EmbeddedPostgres(data_dir)
    try:
        url = server.start()
        postmaster = Postmaster.of(data_dir / "postgres")
        if postmaster is None:
            raise CannotStart("the embedded Postgres has no process id")
        yield url, postmaster.pid
    finally:
        server.stop()


async def _postgres_settings(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return {name: await connection.fetchval(f"SHOW {name}") for name in _POSTGRES_SETTINGS}
    finally:
        await connection.close()


@contextmanager
def _model_server(folder: Path) -> Generator[tuple[str, int]]:
    """The base URL of the model server, and its process id."""
    command = [sys.executable, "-m", "benchmarks.model_server"]
    environment = os.environ | {"PYTHONPATH": str(_PROJECT)}
    with _program("model-server", command, folder, environment) as server:
        port = server.wait_for(re.escape(LISTENING) + r"(\d+)")
        yield f"http://127.0.0.1:{port}/v1", server.pid


@contextmanager
def _collector(folder: Path, telemetry: str) -> Generator[dict[str, str]]:
    """The variables with which the service finds the collector that it exports to, if it does."""
    if telemetry != "otel":
        yield {}
        return
    command = [sys.executable, "-m", "benchmarks.collector"]
    environment = os.environ | {"PYTHONPATH": str(_PROJECT)}
    with _program("collector", command, folder, environment) as server:
        port = server.wait_for(re.escape(COLLECTING) + r"(\d+)")
        yield {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}


def _environment(folder: Path, database_url: str, base_url: str, workers: int) -> dict[str, str]:
    """The service's environment: its settings are these and otherwise the defaults, whatever the caller has set."""
    agents = folder / "agents"
    agents.mkdir()
    for workload in WORKLOADS:
        definition = {
            "name": workload.name,
            "model": f"openai/{workload.model}",
            "instructions": "You are a helpful assistant. Answer in one sentence.",
            "tools": list(workload.tools),
        }
        (agents / f"{workload.name}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    ours = {name.upper() for name in Settings.model_fields}
    inherited = {
        name: value for name, value in os.environ.items() if name.upper() not in ours and not name.startswith("OTEL_")
    }
    return inherited | {
        "DATABASE_URL": database_url,
        "PORT": "0",
        "WORKERS": str(workers),
        "AGENTS_DIR": str(agents),
        "TOOL_MODULES": "benchmarks.tools",
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "benchmark",
        "LOG_LEVEL": "warning",
        "PYTHONPATH": str(_PROJECT),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _agent_runner() -> str:
    """The console script beside this interpreter."""
    return str(Path(sys.executable).parent / "agent-runner")


def _migrate(folder: Path, environment: dict[str, str]) -> None:
    with _program("migrate", [_agent_runner(), "migrate"], folder, environment) as migration:
        migration.wait_for(r"(The database is at .*)")


class Program:
    """A process whose output goes into a file and is watched for a sign."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, sign: str) -> str:
        """Wait until the output matches; the text of the pattern's group.

        Raises:
            CannotStart: the process ended, or took too long.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            ended = self._process.poll()
            output = self._log.read_text(encoding="utf-8", errors="replace")
            found = re.search(sign, output)
            # A line that is only half written yet would give half of what is looked for.
            if found is not None and "\n" in output[found.end() :]:
                return found[1]
            if ended is not None or time.monotonic() > deadline:
                what = f"took longer than {_START_TIMEOUT_S:g} s" if ended is None else f"ended with {ended}"
                tail = "\n".join(output.splitlines()[-_LOG_TAIL_LINES:])
                raise CannotStart(f"{self._name} {what}:\n{tail}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Tell it to end, and where that takes too long, end it and its descendants by force."""
        if self._process.poll() is not None:
            return
        descendants = psutil.Process(self.pid).children(recursive=True)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for descendant in descendants:
            if descendant.is_running():
                descendant.kill()


@contextmanager
def _program(name: str, command: list[str], folder: Path, environment: dict[str, str]) -> Generator[Program]:
    """A program while it is needed. It runs in `folder`, where there is no `.env`."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise CannotStart(f"{name} cannot be started: {error}") from error
    program = Program(name, process, log)
    try:
        yield program
    finally:
        program.stop()
