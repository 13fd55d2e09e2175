"""What is measured: three ways to use the service, and the most that each may cost."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import model_server


@dataclass(frozen=True, slots=True)
class Target:
    """The most CPU per run, and the throughput or wait for the first token that goes with it."""

    cpu_ms_per_run: float
    runs_per_s: float | None = None
    first_token_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request, sent again and again.

    Args:
        name: what `--only` calls it; its agent has the same name.
        model: the model server's name for the answers that it gives.
        path: the endpoint.
        runs: how many are measured by default.
        concurrency: how many are under way at once.
        final_text: what each run has to end with.
        tool_calls: how many tools each run has to have called.
    """

    name: str
    title: str
    model: str
    path: str
    runs: int
    concurrency: int
    final_text: str
    target: Target
    tools: tuple[str, ...] = ()
    tool_calls: int = 0

    @property
    def streams(self) -> bool:
        return self.path.endswith("/stream")

    @property
    def warm_up(self) -> int:
        """Runs before the measurement: connections are opened, statements prepared, code specialised."""
        return 4 * self.concurrency


WORKLOADS = (
    Workload(
        name="one-step",
        title="1 model call, wait",
        model="one-step",
        path="/runs/wait",
        runs=500,
        concurrency=16,
        final_text=model_server.SHORT_TEXT,
        target=Target(cpu_ms_per_run=2.5, runs_per_s=300),
    ),
    Workload(
        name="tools",
        title="4 model calls and 3 tools, wait",
        model="tools-3",
        path="/runs/wait",
        runs=200,
        concurrency=16,
        final_text=model_server.SHORT_TEXT,
        target=Target(cpu_ms_per_run=7.0, runs_per_s=110),
        tools=("look_up",),
        tool_calls=model_server.TOOL_ROUNDS,
    ),
    Workload(
        name="stream",
        title="100-token stream",
        model="stream-100",
        path="/runs/stream",
        runs=200,
        concurrency=8,
        final_text=model_server.LONG_TEXT,
        target=Target(cpu_ms_per_run=6.0, first_token_ms=20),
    ),
)
