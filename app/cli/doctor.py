"""The command `agent-runner doctor`."""

from __future__ import annotations

import asyncio

import asyncpg
import orjson
import typer

from app.cli.database import explained, ready_database
from app.cli.refusal import CannotGoOn
from app.db.diagnosis import Surroundings
from app.db.embedded import EmbeddedPostgresError
from app.services.doctor import Report, examine, unreachable
from app.services.findings import Finding, Severity
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
    report = _report(settings)
    typer.echo(orjson.dumps(_as_data(report), default=str).decode() if as_json else _as_text(report))
    return 1 if report.problems else 0


def _report(settings: Settings) -> Report:
    if not settings.database_url and not (settings.data_dir / "postgres" / "PG_VERSION").exists():
        said = f"DATABASE_URL is empty and there is no embedded database in {settings.data_dir}"
        fix = "set DATABASE_URL or DATA_DIR as the service has them; `agent-runner serve` makes one"
        return Report((Finding("database", Severity.PROBLEM, said, fix),))
    try:
        with ready_database(settings, migrate_embedded=False) as ready, explained(ready.database_url):
            return asyncio.run(_examine(ready))
    except (CannotGoOn, EmbeddedPostgresError) as reason:
        return unreachable(str(reason))


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


def _as_data(report: Report) -> dict[str, object]:
    return {
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
