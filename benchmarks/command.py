"""The command line: which workloads, how many runs, where the results go."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from app.db.embedded import EmbeddedPostgresError
from app.telemetry.logs import configure_logging
from benchmarks.comparison import compare
from benchmarks.figures import limit_s, measure
from benchmarks.load import LoadDriver
from benchmarks.profile import NOT_INSTALLED, ProfileFailed, find_py_spy, recorded, top_functions
from benchmarks.report import Report, commit
from benchmarks.server import CannotStart, Stage, running_stage
from benchmarks.workloads import WORKLOADS, Workload


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    Args:
        runs: factor on each workload's number of runs.
        telemetry: the service's TELEMETRY.
        compare: whether that is compared with a service without.
        py_spy: the profiler, if profiles are wanted.
        json_path: where the JSON file goes; None for its place among the results.
    """

    workloads: tuple[Workload, ...]
    runs: float
    workers: int
    telemetry: str
    compare: bool
    py_spy: str | None
    json_path: Path | None

    def runs_of(self, workload: Workload) -> int:
        return max(1, round(self.runs * workload.runs))


def run_command(argv: list[str] | None) -> int:
    """See `benchmarks.main`."""
    options = _options(argv)
    configure_logging("console", "warning")
    # SIGTERM leaves through every `finally` as Ctrl-C does: nothing that was started stays behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _compare(options) if options.compare else _run(options)
    except (CannotStart, EmbeddedPostgresError, ProfileFailed) as reason:
        print(f"benchmarks: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _options(argv: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description="Measure what runs cost: CPU, throughput, latency, memory."
    )
    parser.add_argument("--runs", type=float, default=1.0, help="factor on the number of runs (1)")
    parser.add_argument("--workers", type=int, default=1, help="replica processes of the service (1)")
    parser.add_argument(
        "--telemetry",
        choices=("none", "json", "otel"),
        default="none",
        help="the service's TELEMETRY; otel exports to a local collector (none)",
    )
    parser.add_argument("--compare", action="store_true", help="send bursts in turn with telemetry and without it")
    names = ",".join(workload.name for workload in WORKLOADS)
    parser.add_argument("--only", default=names, help=f"workloads, with commas between ({names})")
    parser.add_argument("--profile", action="store_true", help="also record a profile of each workload with py-spy")
    parser.add_argument("--json", type=Path, help="where the JSON file goes (benchmarks/results/DATE-COMMIT.json)")
    given = parser.parse_args(argv)
    if given.compare and (given.telemetry == "none" or given.profile):
        parser.error("--compare needs --telemetry json or otel, and goes without --profile")
    wanted = set(given.only.split(","))
    workloads = tuple(workload for workload in WORKLOADS if workload.name in wanted)
    if len(workloads) != len(wanted):
        parser.error(f"--only {given.only}: the workloads are {names}")
    if not 0 < given.runs <= 1000 or given.workers < 1:
        parser.error("--runs is a factor above 0, up to 1000, and --workers at least 1")
    py_spy = find_py_spy() if given.profile else None
    if given.profile and py_spy is None:
        parser.error(NOT_INSTALLED)
    return Options(workloads, given.runs, given.workers, given.telemetry, given.compare, py_spy, given.json)


def _run(options: Options) -> int:
    load = os.getloadavg()[0]
    with running_stage(options.workers, options.telemetry) as stage:
        report = Report(
            started_at=datetime.now(UTC),
            commit=commit(),
            postgres=stage.postgres,
            settings={"runs": options.runs, "workers": options.workers, "telemetry": options.telemetry},
            load=load,
            ready_s=stage.ready_s,
            figures=[],
        )
        for workload in options.workloads:
            runs = options.runs_of(workload)
            print(f"{workload.title}: {runs} runs, {workload.concurrency} at once ...", file=sys.stderr, flush=True)
            report.figures.append(uvloop.run(measure(stage, workload, runs)))
        path = options.json_path or report.path(".json")
        report.write(path)
        print(f"\n{report.text()}\n\nwritten to {_shown(path)}")
        if options.py_spy is not None:
            for workload in options.workloads:
                profile = report.path(f"-{workload.name}.folded")
                _profile(stage, workload, options.runs_of(workload), options.py_spy, profile)
    return 1 if report.failed else 0


def _compare(options: Options) -> int:
    with running_stage(options.workers) as without, running_stage(options.workers, options.telemetry) as with_it:
        for workload in options.workloads:
            runs = options.runs_of(workload)
            print(f"{workload.title}: 2 x {runs} runs in bursts ...", file=sys.stderr, flush=True)
            compared = uvloop.run(compare(without, with_it, workload, runs))
            print(compared.text(f"TELEMETRY={options.telemetry}"), flush=True)
    return 0


def _profile(stage: Stage, workload: Workload, runs: int, py_spy: str, path: Path) -> None:
    """Send the load once more under the profiler, which slows it down: its figures are not those that are told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with recorded(py_spy, stage.service_pid, path):
        uvloop.run(LoadDriver(stage.url).drive(workload, runs, limit_s=limit_s(runs)))
    print(f"\n{workload.title}: samples inside each function itself, in {_shown(path)}")
    for function, share in top_functions(path):
        print(f"{share:7.1%}  {function}")


def _shown(path: Path) -> Path:
    with suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
