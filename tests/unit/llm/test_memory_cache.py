from __future__ import annotations

from app.llm.memory_cache import MemoryModelCache


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_kept_for_its_time_and_given_to_those_who_take_it_so_old() -> None:
    clock = Clock()
    cache = MemoryModelCache(clock=clock)
    await cache.put(b"k", b"a", 100)
    clock.now = 50
    assert await cache.get(b"k", 60) == b"a"
    assert await cache.get(b"k", 50) is None
    clock.now = 100
    assert await cache.get(b"k", 1000) is None
    assert await cache.get(b"other", 1000) is None


async def test_a_later_answer_takes_the_place_of_an_earlier_one() -> None:
    cache = MemoryModelCache(most_bytes=6)
    for answer in (b"aaaaaa", b"bbbbbb"):
        await cache.put(b"k", answer, 100)
    assert await cache.get(b"k", 100) == b"bbbbbb"


async def test_beyond_its_bounds_it_lets_go_of_what_was_used_longest_ago() -> None:
    for cache in (MemoryModelCache(most_entries=2), MemoryModelCache(most_bytes=6)):
        await cache.put(b"1", b"abc", 100)
        await cache.put(b"2", b"abc", 100)
        assert await cache.get(b"1", 100)
        await cache.put(b"3", b"abc", 100)
        assert [await cache.get(key, 100) for key in (b"1", b"2", b"3")] == [b"abc", None, b"abc"]


async def test_what_does_not_fit_at_all_is_not_kept() -> None:
    cache = MemoryModelCache(most_bytes=6)
    await cache.put(b"k", b"a" * 7, 100)
    assert await cache.get(b"k", 100) is None
