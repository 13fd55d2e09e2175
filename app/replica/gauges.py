"""The numbers of a replica that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from app.db.pools import Pools
from app.replica.execution import Execution
from app.telemetry.metrics import Labels, Metrics


def add_gauges(metrics: Metrics, pools: Pools, execution: Execution) -> None:
    def connections() -> Iterator[tuple[int, Labels]]:
        for use in pools.use():
            yield use.used, {"pool": use.pool, "state": "used"}
            yield use.idle, {"pool": use.pool, "state": "idle"}

    metrics.gauge(
        "agent_runner.runs.under_way",
        "Runs that this replica executes now.",
        lambda: [(len(execution.executor.under_way()), {})],
    )
    metrics.gauge(
        "agent_runner.subscribers",
        "Who follows events here now: streams, and callers that wait for a run.",
        lambda: [(execution.bus.subscribers(), {})],
    )
    metrics.gauge("agent_runner.db.connections", "Open database connections, by pool and state.", connections)
    metrics.counter(
        "agent_runner.db.acquire_timeouts",
        "How often none of a pool's connections was free in time.",
        lambda: [(use.timeouts, {"pool": use.pool}) for use in pools.use()],
    )
    metrics.gauge(
        "agent_runner.replicas",
        "Live replicas that this one knows of, itself included: they share what is limited.",
        lambda: [(execution.replicas.now, {})],
    )
    metrics.gauge(
        "agent_runner.runs.stalled",
        "Runs under way here without progress for STEP_DEADLINE_S.",
        lambda: [(execution.worker.stalled, {})],
    )
