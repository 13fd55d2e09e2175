"""The program `agent-runner`: `serve`, `migrate`, `agents`, `doctor` and `bench`.

Exit codes: 0 it stopped or did as asked, 1 it could not, 2 a setting or an argument cannot be used, 3 the
application failed while starting (its log says why).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.database import explained, lacking_migrations, ready_database
from app.cli.refusal import CannotGoOn
from app.cli.serve import banner, listening, serve_in_this_process, serve_in_workers
from app.db import migrate as migrations
from app.db.embedded import EmbeddedPostgresError
from app.settings import Settings, SettingsError
from app.telemetry.logs import configure_logging

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs LLM agents durably on Postgres, over HTTP.",
)

agents_cli = typer.Typer(no_args_is_help=True, help="List and save agents.")
cli.add_typer(agents_cli, name="agents")


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
    _check_providers(settings)
    with (
        _signals_end_the_program(),
        listening(settings) as listener,
        ready_database(settings, keep_alive=True) as ready_settings,
    ):
        # An embedded one has just been migrated.
        migrated = not settings.database_url or not lacking_migrations(settings.database_url)
        tell = banner(settings, listener, migrated=migrated)
        if settings.workers == 1:
            serve_in_this_process(ready_settings, listener, tell)
        else:
            serve_in_workers(ready_settings, listener, tell)


@cli.command()
def migrate(
    revision: Annotated[str, typer.Option(help="Migrate up to this revision.")] = "head",
    down: Annotated[str | None, typer.Option(help="Migrate down to this revision; `base` is nothing.")] = None,
) -> None:
    """Bring the database to a revision."""
    settings = _load_settings()
    with _signals_end_the_program(), ready_database(settings, migrate_embedded=False) as ready_settings:
        url = ready_settings.database_direct_url or ready_settings.database_url
        with explained(url):
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


@cli.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of text.")] = False,
) -> None:
    """Say what is stuck or broken, why, and what to do about it; starts and changes nothing.

    Give it the settings of the service: its database, LEASE_S and MAX_CONCURRENT_RUNS.

    Exit codes: 0 nothing is wrong, 1 there are problems, 2 a setting or an argument cannot be used.
    """
    # Imported here, so that `serve` does without.
    diagnosing = importlib.import_module("app.cli.doctor")
    try:
        settings = _load_settings()
    except CannotGoOn as reason:
        if as_json:
            diagnosing.show_refusal(str(reason))
        raise
    with _signals_end_the_program():
        sys.exit(diagnosing.diagnose(settings, as_json=as_json))


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
    _check_providers(settings)
    with _signals_end_the_program(), ready_database(settings) as ready_settings:
        try:
            asyncio.run(getattr(agents, command)(ready_settings, *arguments))
        except agents.REFUSALS as error:
            raise CannotGoOn(str(error)) from error


def _load_settings(**overrides: Any) -> Settings:
    try:
        settings = Settings.load(**overrides)
    except SettingsError as error:
        raise CannotGoOn(str(error), exit_code=2) from error
    configure_logging(settings.log_format, settings.log_level)
    return settings


def _check_providers(settings: Settings) -> None:
    """Read the file of PROVIDERS_FILE, so that what is wrong with it is told as what is wrong with any setting.

    Raises:
        CannotGoOn: it cannot be used.
    """
    if settings.providers_file is None:
        return
    # Imported here, so that whoever has no such file does without.
    providers = importlib.import_module("app.llm.providers_file")
    try:
        providers.read_providers(settings.providers_file, os.environ)
    except providers.ProvidersFileError as error:
        raise CannotGoOn(str(error), exit_code=2) from error


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


if __name__ == "__main__":
    main()
