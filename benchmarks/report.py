"""What the benchmark tells: a table for people, and a JSON file with all that is needed to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.figures import Figures, Percentiles
from benchmarks.workloads import WORKLOADS, Target

RESULTS = Path(__file__).resolve().parent / "results"
_HEADINGS = (
    "workload", "CPU/run", "at most", "runs/s", "at least", "p50", "p95", "p99",
    "1st token p50", "p95", "at most", "peak RSS", "errors",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """All of one benchmark.

    Args:
        started_at: in UTC.
        postgres: version and settings of the database.
        settings: how the benchmark was called.
        load: processes that wanted to run in the minute before it, on average.
        ready_s: seconds until the service was ready.
    """

    started_at: datetime
    commit: str
    postgres: dict[str, str]
    settings: dict[str, Any]
    load: float
    ready_s: float
    figures: list[Figures]

    @property
    def failed(self) -> bool:
        """Whether any run did not do what it should."""
        return any(figures.error_count or not figures.runs for figures in self.figures)

    def path(self, suffix: str) -> Path:
        """A file among the results, named by date and commit."""
        return RESULTS / f"{self.started_at:%Y%m%dT%H%M%SZ}-{self.commit}{suffix}"

    def write(self, path: Path) -> None:
        """Write all of it as JSON."""
        document = {
            "started_at": self.started_at,
            "commit": self.commit,
            "version": version("agent-runner"),
            "machine": machine(),
            "postgres": self.postgres,
            "settings": self.settings,
            "load": round(self.load, 2),
            "ready_s": round(self.ready_s, 2),
            "workloads": [{**asdict(figures), "target": asdict(_target(figures.name))} for figures in self.figures],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

    def text(self) -> str:
        """The table, with the machine above it and what went wrong below."""
        here = machine()
        lines = [
            f"agent-runner {version('agent-runner')}, commit {self.commit}, "
            f"{self.settings['workers']} worker(s), ready in {self.ready_s:.1f} s",
            f"{here['cpu']}, {here['cores']} cores, load {self.load:.1f} before it began; {here['python']}; "
            f"PostgreSQL {self.postgres['server_version']}, fsync {self.postgres['fsync']}",
            "",
            *_table([_HEADINGS, *(_row(figures) for figures in self.figures)]),
            "",
            "CPU/run: the service's whole process tree, in ms; the figure of record. Latencies in ms.",
        ]
        for figures in self.figures:
            if figures.cpu_ms_per_run is not None:
                cpu = figures.cpu_ms_per_run
                lines.append(
                    f"{figures.name}: beside it Postgres {cpu.database:.2f}, model server {cpu.model_server:.2f}, "
                    f"load driver {cpu.load_driver:.2f} ms CPU/run"
                )
            lines += [f"{figures.name}: ERROR {error}" for error in figures.errors]
        return "\n".join(lines)


def commit() -> str:
    """The checked-out commit, with `-dirty` where files differ from it; `unknown` outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=RESULTS.parent,
            capture_output=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.decode().strip()


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _target(name: str) -> Target:
    return next(workload.target for workload in WORKLOADS if workload.name == name)


def _row(figures: Figures) -> tuple[str, ...]:
    target = _target(figures.name)
    title = next(workload.title for workload in WORKLOADS if workload.name == figures.name)
    cpu = figures.cpu_ms_per_run
    first = figures.first_token_ms
    return (
        f"{title}, {figures.concurrency} at once",
        "-" if cpu is None else f"{cpu.service:.2f}",
        f"{target.cpu_ms_per_run:.2f}",
        f"{figures.runs_per_s:.0f}",
        "-" if target.runs_per_s is None else f"{target.runs_per_s:.0f}",
        *_milliseconds(figures.latency_ms),
        *_milliseconds(first)[:2],
        "-" if target.first_token_ms is None else f"{target.first_token_ms:.0f}",
        f"{figures.peak_rss_mib:.0f} MiB",
        str(figures.error_count),
    )


def _milliseconds(percentiles: Percentiles | None) -> tuple[str, str, str]:
    if percentiles is None:
        return ("-", "-", "-")
    return (f"{percentiles.p50:.1f}", f"{percentiles.p95:.1f}", f"{percentiles.p99:.1f}")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
