"""The program `agent-runner`: `serve`, `migrate`, `agents` and `bench`.

Exit codes: 0 it stopped or did as asked, 1 it could not, 2 a setting or an argument cannot be used, 3 the
application failed while starting (its log says why).
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import asyncpg
import typer
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.db import migrate as migrations
from app.db.embedded import EmbeddedPostgres, EmbeddedPostgresError
from app.settings import Settings, SettingsError
from app.telemetry.logs import configure_logging, get_logger

if TYPE_CHECKING:
    from fastapi import FastAPI

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OLDEST_POSTGRES = 15
_CONNECT_TIMEOUT_S = 10
_BACKLOG = 2048

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs LLM agents durably on Postgres, over HTTP.",
)

agents_cli = typer.Typer(no_args_is_help=True, help="List and save agents.")
cli.add_typer(agents_cli, name="agents")


class CannotGoOn(Exception):
    """What was asked for cannot be done; the text is for a person, `exit_code` for the shell."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main() -> None:
    """The console script. Never shows a traceback for what a person can put right."""
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it: TOOL_MODULES may be in the folder one stands in
    try:
        cli(prog_name="agent-runner")
    except CannotGoOn as reason:
        typer.echo(f"agent-runner: {reason}", err=True)
        sys.exit(reason.exit_code)
    except EmbeddedPostgresError as reason:
        typer.echo(f"agent-runner: {reason}", err=True)
        sys.exit(1)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"agent-runner {version('agent-runner')}")
        raise typer.Exit


@cli.callback()
def program(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Runs LLM agents durably on Postgres, over HTTP."""


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[str | None, typer.Option(help="Port to listen on (PORT).")] = None,
    workers: Annotated[str | None, typer.Option(help="Replica processes on this machine (WORKERS).")] = None,
) -> None:
    """Serve the HTTP API and execute runs, until SIGTERM or Ctrl-C."""
    settings = _load_settings(host=host, port=port, workers=workers)
    with _signals_end_the_program(), _listening(settings) as listener, _database(settings) as ready_settings:
        banner = _banner(settings, listener)
        if settings.workers == 1:
            _serve_in_this_process(ready_settings, listener, banner)
        else:
            _serve_in_workers(ready_settings, listener, banner)


@cli.command()
def migrate(
    revision: Annotated[str, typer.Option(help="Migrate up to this revision.")] = "head",
    down: Annotated[str | None, typer.Option(help="Migrate down to this revision; `base` is nothing.")] = None,
) -> None:
    """Bring the database to a revision."""
    settings = _load_settings()
    with _signals_end_the_program(), _database(settings, migrate_embedded=False) as ready_settings:
        url = ready_settings.database_direct_url or ready_settings.database_url
        with _explained(url):
            if down is None:
                asyncio.run(migrations.upgrade(url, revision))
            else:
                asyncio.run(migrations.downgrade(url, down))
    typer.echo(f"The database is at {down or revision}.")


@agents_cli.command("list")
def list_agents() -> None:
    """Show the stored agents: name, current version, source and model."""
    _with_agents("show_agents")


@agents_cli.command("apply")
def apply_agent(
    file: Annotated[Path, typer.Argument(help="A YAML file with one agent.", exists=True, dir_okay=False)],
) -> None:
    """Save an agent from a YAML file, as PUT /agents/{name} would: a new version if its content changed."""
    _with_agents("save_agent", file)


@cli.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,  # the benchmarks have their own
)
def bench(context: typer.Context) -> None:
    """Measure CPU time per run, throughput and latency (from a checkout; --help lists the options)."""
    try:
        benchmarks = importlib.import_module("benchmarks")
    except ModuleNotFoundError as error:
        raise CannotGoOn("the benchmarks are part of the repository: run this from a checkout of it") from error
    sys.exit(benchmarks.main(context.args))


def _with_agents(command: str, *arguments: Path) -> None:
    # Imported here, so that the parent of worker processes does without all that an agent's definition needs.
    agents = importlib.import_module("app.cli.agents")
    settings = _load_settings()
    with _signals_end_the_program(), _database(settings) as ready_settings:
        try:
            asyncio.run(getattr(agents, command)(ready_settings, *arguments))
        except agents.REFUSALS as error:
            raise CannotGoOn(str(error)) from error


def create_worker_app() -> FastAPI:
    """The application of one of several worker processes; its settings come through the environment."""
    from app.main import create_app

    settings = Settings.load()
    configure_logging(settings.log_format, settings.log_level)
    threading.Thread(target=_stop_with_parent, name="stop-with-parent", daemon=True).start()
    return create_app(settings)


def _stop_with_parent() -> None:
    """A worker whose parent was killed would hold the port for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _load_settings(**overrides: Any) -> Settings:
    try:
        settings = Settings.load(**overrides)
    except SettingsError as error:
        raise CannotGoOn(str(error), exit_code=2) from error
    configure_logging(settings.log_format, settings.log_level)
    return settings


@contextmanager
def _signals_end_the_program() -> Generator[None]:
    """SIGTERM and Ctrl-C leave through every `finally` with exit code 0, also while the service starts.

    uvicorn takes the signals over while it serves, and raises the one that it got again when it has finished.
    """

    def leave(_signal: int, _frame: object) -> None:
        # A second signal must not interrupt the clearing up; it is short and bounded.
        for name in _STOP_SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        sys.exit(0)

    before = {name: signal.signal(name, leave) for name in _STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _listening(settings: Settings) -> Generator[socket.socket]:
    """The bound socket; taken first, so that a port in use is told before a database is started."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise CannotGoOn(f"cannot listen on {settings.host} port {settings.port}: {reason}") from error
    with listener:
        yield listener


@contextmanager
def _database(settings: Settings, *, migrate_embedded: bool = True) -> Generator[Settings]:
    """Settings whose database answers: the configured one, or an embedded one for as long as this lasts."""
    if settings.database_url:
        with _explained(settings.database_url):
            asyncio.run(_check_database(settings.database_url))
        yield settings
        return
    server = EmbeddedPostgres(settings.data_dir)
    try:
        url = server.start()
        with _explained(url):
            if migrate_embedded and asyncio.run(migrations.pending(url)) is not None:
                asyncio.run(migrations.upgrade(url))
        yield settings.model_copy(update={"database_url": url})
    finally:
        server.stop()


async def _check_database(url: str) -> None:
    connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, statement_cache_size=0)
    try:
        found = connection.get_server_version()
        if found.major < _OLDEST_POSTGRES:
            raise CannotGoOn(f"{_place(url)} is PostgreSQL {found.major}; {_OLDEST_POSTGRES} or later is needed")
    finally:
        await connection.close()


@contextmanager
def _explained(url: str) -> Generator[None]:
    """What goes wrong between us and a database, in one line and without the password."""
    try:
        yield
    except migrations.MigrationError as error:
        raise CannotGoOn(str(error)) from error
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else " ".join(str(error).split())
        raise CannotGoOn(f"the database of DATABASE_URL, {_place(url)}, cannot be used: {reason}") from error


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2] or 'a Unix socket'}{parts.path}"


def _banner(settings: Settings, listener: socket.socket) -> Callable[[], None]:
    """Tells, when called, that requests are served and where."""
    port: int = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    database = (
        f"Postgres at {_place(settings.database_url)}"
        if settings.database_url
        else f"embedded Postgres in {settings.data_dir}"
    )
    release = version("agent-runner")

    def tell() -> None:
        if settings.log_format == "json":
            get_logger(__name__).info("ready", url=url, version=release, database=database, workers=settings.workers)
        else:
            workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
            typer.echo(f"agent-runner {release} ready on {url} ({database}, {workers})")

    return tell


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it has started."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


class _Supervisor(Multiprocess):
    """uvicorn's supervisor of workers, which tells when all of them have started."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], on_ready: Callable[[], None]) -> None:
        super().__init__(config, sockets)
        self._on_ready: Callable[[], None] | None = on_ready

    def keep_subprocess_alive(self) -> None:
        # With our copy of a worker's end open, a worker that dies would be waited for instead of noticed.
        for process in self.processes:
            process.child_conn.close()
        super().keep_subprocess_alive()
        if (
            self._on_ready is not None
            and not self.should_exit.is_set()
            and all(process.is_ready() for process in self.processes)
        ):
            self._on_ready()
            self._on_ready = None


def _serve_in_this_process(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    # Imported here, so that `migrate` and the parent of worker processes do without the web application.
    from app.main import create_app

    _Server(_server_config(create_app(settings), settings), on_ready).run(sockets=[listener])


def _serve_in_workers(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    os.environ["DATABASE_URL"] = settings.database_url
    os.environ |= {"HOST": settings.host, "PORT": str(settings.port), "WORKERS": str(settings.workers)}
    supervisor = _Supervisor(_server_config("app.cli:create_worker_app", settings), [listener], on_ready)
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


def _server_config(application: FastAPI | str, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        factory=isinstance(application, str),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        workers=settings.workers,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s),
        # A worker answers only when its interpreter is up, which takes long on a busy machine.
        timeout_worker_healthcheck=30,
    )


if __name__ == "__main__":
    main()
