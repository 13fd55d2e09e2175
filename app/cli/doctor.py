"""The command `agent-runner doctor`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import assert_never
from urllib.parse import unquote, urlsplit

import asyncpg
import orjson
import typer

from app.cli.database import explained, ready_database
from app.cli.refusal import CannotGoOn
from app.db.diagnosis import Surroundings
from app.db.embedded import Absence, EmbeddedPostgresError, running_url
from app.services.doctor import Report, examine, unexamined
from app.settings import Settings

_CONNECT_TIMEOUT_S = 10
# More than all looks together may take; only a connection that died silently meets it.
_COMMAND_TIMEOUT_S = 90


def diagnose(settings: Settings, *, as_json: bool) -> int:
    """Look at the database of these settings and print what was found.

    Args:
        as_json: print one JSON object in place of text.

    Returns:
        the exit code: 0 nothing is wrong, 1 there are problems.
    """
    report = _report(settings) if settings.database_url else _report_on_embedded(settings)
    typer.echo(_as_json(report) if as_json else _as_text(report))
    return 1 if report.problems else 0


def show_refusal(reason: str) -> None:
    """Print, as the JSON object of a diagnosis, that the settings cannot be used."""
    typer.echo(_as_json(unexamined("settings", reason, "set it right, in the environment or in .env")))


def _report_on_embedded(settings: Settings) -> Report:
    try:
        found = running_url(settings.data_dir)
    except EmbeddedPostgresError as reason:
        return unexamined("database", str(reason), "run doctor with the account of the service")
    if isinstance(found, Absence):
        return unexamined("database", *_absent(found, settings.data_dir))
    return _report(settings.model_copy(update={"database_url": found}))


def _absent(absence: Absence, data_dir: Path) -> tuple[str, str]:
    """Why there is no embedded database to look at, which a diagnosis never starts, and what to do about it."""
    its, log = f"the embedded database in {data_dir}", data_dir / "postgres.log"
    match absence:
        case Absence.NEVER_MADE:
            said = f"DATABASE_URL is empty and there is no embedded database in {data_dir}"
            return said, "set DATABASE_URL or DATA_DIR as the service has them; `agent-runner serve` makes one"
        case Absence.STOPPED:
            return f"{its} is not running: its service is stopped", "start the service: `agent-runner serve`"
        case Absence.DIED:
            fix = "start the service: `agent-runner serve`; one that lives starts its server again within seconds"
            return f"{its} is not running: its server died", f"{fix}; {log} may say why"
        case Absence.BUSY:
            fix = f"try again in a moment; {log} says what it is at"
            return f"{its} is starting, recovering or stopping", fix
        case _:
            assert_never(absence)


def _report(settings: Settings) -> Report:
    try:
        with ready_database(settings) as ready, explained(ready.database_url):
            return asyncio.run(_examine(ready))
    except CannotGoOn as reason:
        fix = "check DATABASE_URL, and that the server runs and lets this machine in"
        if isinstance(reason.__cause__, asyncpg.InvalidCatalogNameError):
            name = unquote(urlsplit(settings.database_url).path.removeprefix("/")).replace('"', '""')
            fix = f'make it on that server: CREATE DATABASE "{name}"; then run `agent-runner migrate`'
        return unexamined("database", str(reason), fix)


async def _examine(settings: Settings) -> Report:
    around = Surroundings(settings.lease_s, settings.step_deadline_s)
    # Nothing is prepared under a name, so that a pooler may stand in between.
    connection = await asyncpg.connect(
        settings.database_url,
        timeout=_CONNECT_TIMEOUT_S,
        command_timeout=_COMMAND_TIMEOUT_S,
        statement_cache_size=0,
    )
    try:
        return await examine(connection, around, settings.max_concurrent_runs)
    finally:
        await connection.close()


def _as_text(report: Report) -> str:
    parts: list[str] = []
    for finding in report.findings:
        lines = [f"{finding.severity.upper()}: {finding.said}"]
        lines += [f"    {example.said}" for example in finding.examples]
        more = finding.total - len(finding.examples)
        if more > 0:
            lines.append(f"    and {more} more" if finding.exact else "    and more")
        lines += [f"  fix: {finding.fix}"] if finding.fix is not None else []
        parts.append("\n".join(lines))
    if report.server:
        counts = ", ".join(f"{count} {status}" for status, count in (report.counts or {}).items())
        lines = [f"{report.server}; runs: {counts or 'none'}"]
        parts.append("\n".join((*lines, *(replica.said for replica in report.replicas))))
    parts.append(f"Verdict: {report.verdict}.")
    return "\n\n".join(parts)


def _as_json(report: Report) -> str:
    data = {
        "verdict": report.verdict,
        "problems": report.problems,
        "server": report.server,
        "runs": report.counts or {},
        "replicas": [replica.row for replica in report.replicas],
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "said": finding.said,
                "fix": finding.fix,
                "total": finding.total,
                "exact": finding.exact,
                "examples": [{"said": example.said, **example.row} for example in finding.examples],
            }
            for finding in report.findings
        ],
    }
    return orjson.dumps(data, default=str).decode()
