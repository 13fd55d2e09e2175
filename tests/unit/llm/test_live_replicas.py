from __future__ import annotations

from app.llm.live_replicas import LiveReplicas


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_more_replicas_count_at_once_and_fewer_after_the_window() -> None:
    clock = Clock()
    replicas = LiveReplicas(clock)
    assert replicas.most_within(60) == 1
    replicas.counted(3)
    assert replicas.most_within(60) == 3
    clock.now += 1000
    replicas.counted(2)
    assert replicas.most_within(60) == 3
    clock.now += 59
    assert replicas.most_within(60) == 3
    clock.now += 1
    assert replicas.most_within(60) == 2


def test_a_short_rise_is_remembered_as_long() -> None:
    clock = Clock()
    replicas = LiveReplicas(clock)
    for count in (5, 1):
        replicas.counted(count)
        clock.now += 1
    assert replicas.most_within(60) == 5
    clock.now += 60
    assert replicas.most_within(60) == 1
