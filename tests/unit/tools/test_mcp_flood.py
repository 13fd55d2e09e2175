"""How much a server may send unasked."""

from __future__ import annotations

import pytest

from app.tools.mcp_servers.flood import Flooded, FloodGate


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_more_messages_at_once_than_the_bound_are_a_flood() -> None:
    gate = FloodGate(10, 1000, Clock())
    for _ in range(10):
        gate.take(messages=1)
    with pytest.raises(Flooded, match="more than 10 messages"):
        gate.take(messages=1)


def test_more_bytes_at_once_than_the_bound_are_a_flood() -> None:
    gate = FloodGate(10, 1000, Clock())
    gate.take(size=1000)
    with pytest.raises(Flooded, match="more than 1000 bytes"):
        gate.take(size=1)


def test_a_tenth_of_the_bound_may_come_every_second_for_ever() -> None:
    clock = Clock()
    gate = FloodGate(10, 1000, clock)
    for _ in range(1000):
        gate.take(messages=1, size=100)
        clock.now += 1
    for _ in range(10):
        gate.take(messages=1)
    with pytest.raises(Flooded):
        gate.take(messages=1)


def test_a_call_begins_with_all_of_it() -> None:
    gate = FloodGate(10, 1000, Clock())
    gate.take(messages=10, size=1000)
    gate.refill()
    gate.take(messages=10, size=1000)
