from __future__ import annotations

from app.event_bus.memory import MemoryBus


def test_a_reader_of_several_runs_is_one_subscriber() -> None:
    bus = MemoryBus()
    with bus.subscribe("run-1", "run-2"), bus.subscribe("run-1"):
        assert bus.subscribers() == 2
    assert bus.subscribers() == 0
