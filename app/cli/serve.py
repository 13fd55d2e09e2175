"""The command `agent-runner serve`: one replica in this process, or several in processes of their own."""

from __future__ import annotations

import atexit
import gc
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
from typing import TYPE_CHECKING

import typer
import uvicorn

from app.cli.connection import BoundedConnection
from app.cli.database import place_of
from app.cli.refusal import CannotGoOn
from app.cli.server import Server
from app.cli.supervisor import Supervisor
from app.settings import Settings
from app.telemetry.logs import configure_logging, get_logger

if TYPE_CHECKING:
    from fastapi import FastAPI

_BACKLOG = 2048
_MIGRATE = "not ready: run `agent-runner migrate`"

log = get_logger(__name__)


@contextmanager
def listening(settings: Settings) -> Generator[socket.socket]:
    """The bound socket; taken first, so that a port in use is told before a database is started.

    Raises:
        CannotGoOn: the address cannot be listened on.
    """
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


def banner(settings: Settings, listener: socket.socket, *, migrated: bool) -> Callable[[], None]:
    """Tells, when called, that requests are served and where.

    Args:
        settings: those that were given.
        migrated: whether the database is; until then requests are answered, and none does any work.
    """
    port: int = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    database = (
        f"Postgres at {place_of(settings.database_url)}"
        if settings.database_url
        else f"embedded Postgres in {settings.data_dir}"
    )
    release = version("agent-runner")

    def tell() -> None:
        if settings.log_format == "json":
            told = {"url": url, "version": release, "database": database, "workers": settings.workers}
            if migrated:
                log.info("ready", **told)
            else:
                log.warning("listening", **told, hint=_MIGRATE)
        else:
            workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
            does, hint = ("ready", "") if migrated else ("listening", f"; {_MIGRATE}")
            typer.echo(f"agent-runner {release} {does} on {url} ({database}, {workers}){hint}")

    return tell


def serve_in_this_process(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until a signal; raises it again when all is over, as uvicorn does."""
    # Imported here, so that `migrate` and the parent of worker processes do without the web application.
    from app.main import create_app

    # Before it ends, the interpreter would look for garbage among all that was ever imported, for a second or two.
    # A worker of several ends by the signal itself, and does without.
    atexit.register(gc.freeze)
    Server(
        _server_config(create_app(settings), settings),
        delay_s=settings.shutdown_delay_s,
        grace_s=settings.shutdown_grace_s,
        alone=True,
        on_ready=on_ready,
    ).run(sockets=[listener])


def serve_in_workers(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """The same with `settings.workers` processes.

    Raises:
        SystemExit: none of them could start.
    """
    os.environ["DATABASE_URL"] = settings.database_url
    os.environ |= {"HOST": settings.host, "PORT": str(settings.port), "WORKERS": str(settings.workers)}
    supervisor = Supervisor(
        _server_config("app.cli.serve:create_worker_app", settings),
        [listener],
        on_ready,
        delay_s=settings.shutdown_delay_s,
        grace_s=settings.shutdown_grace_s,
    )
    sys.exit(supervisor.run())


def create_worker_app() -> FastAPI:
    """The application of one of several worker processes; its settings come through the environment."""
    from app.main import create_app

    # The parent starts its workers with this held back: until now nobody here could have answered it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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


def _server_config(application: FastAPI | str, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        factory=isinstance(application, str),
        loop="uvloop",
        http=BoundedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        workers=settings.workers,
    )
