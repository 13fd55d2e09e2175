from __future__ import annotations

from datetime import UTC, datetime

from app.engine.memories import MAX_TEXT_CHARS, MemoryRecord, NewMemory, fused


def record(key: str) -> MemoryRecord:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return MemoryRecord("n", key, "1", key, None, now, now)


def ranking(*keys: str) -> list[MemoryRecord]:
    return [record(key) for key in keys]


def test_what_is_in_both_rankings_goes_before_what_is_first_in_one() -> None:
    found = fused([ranking("a", "both"), ranking("b", "both")], 10)
    assert [item.record.key for item in found] == ["both", "a", "b"]
    assert [round(item.score, 5) for item in found] == [round(2 / 62, 5), round(1 / 61, 5), round(1 / 61, 5)]


def test_only_the_best_are_left() -> None:
    assert [item.record.key for item in fused([ranking("a", "b", "c")], 2)] == ["a", "b"]
    assert fused([[], []], 2) == ()


def test_the_text_of_a_value_is_a_string_itself_and_else_its_json() -> None:
    assert NewMemory.of("k", "tea") == NewMemory("k", '"tea"', "tea")
    assert NewMemory.of("k", {"a": 1}) == NewMemory("k", '{"a":1}', '{"a":1}')
    assert NewMemory.of("k", {"a": 1}, "one") == NewMemory("k", '{"a":1}', "one")


def test_of_a_long_value_the_beginning_is_searched() -> None:
    assert NewMemory.of("k", "x" * 50_000).text == "x" * MAX_TEXT_CHARS
