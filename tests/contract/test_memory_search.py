"""What a search answers where there are embeddings, or none yet."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.engine.memories import Embedder, Found, MemoryPlace, MemoryRows, NewMemory, SearchMode, Vector
from app.services.memories import MemoryService
from tests.model_server.embeddings import vector

PLACE = MemoryPlace("", "users/42")


class _Embeds:
    """Embeds by the dictionary that the model server has."""

    def __init__(self, model: str) -> None:
        self.model = model

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        return [vector(text) for text in texts]

    async def aclose(self) -> None:
        pass


@pytest.fixture
def embedder() -> Embedder:
    return _Embeds("meaning-1")


@pytest.fixture
def memories(comparing: MemoryRows, embedder: Embedder) -> MemoryService:
    return MemoryService(comparing, embedder)


def told(found: Found) -> tuple[list[str], SearchMode, str | None]:
    return [item.record.key for item in found.items], found.mode, found.reason


async def test_while_no_memory_has_an_embedding_of_the_model_a_search_is_by_words_and_says_so(
    comparing: MemoryRows, memories: MemoryService
) -> None:
    await MemoryService(comparing, _Embeds("meaning-0")).put(PLACE, NewMemory.of("tea", "Likes tea."))
    await comparing.put(PLACE, NewMemory.of("coffee", "Likes coffee."))
    reason = "no memory of this namespace has an embedding of meaning-1 yet"
    assert told(await memories.search(PLACE, "beverages", 10)) == ([], SearchMode.TEXT, reason)
    assert told(await memories.search(PLACE, "tea", 10)) == (["tea"], SearchMode.TEXT, reason)
    await memories.put(MemoryPlace("", "users/43"), NewMemory.of("tea", "Likes tea."))
    assert told(await memories.search(PLACE, "tea", 10)) == (["tea"], SearchMode.TEXT, reason)
    await memories.put(PLACE, NewMemory.of("dog", "Has a dog."))
    assert told(await memories.search(PLACE, "tea", 10)) == (["tea", "dog"], SearchMode.HYBRID, None)


async def test_where_a_query_excludes_all_that_could_be_near_the_search_was_by_meaning_all_the_same(
    memories: MemoryService,
) -> None:
    await memories.put(PLACE, NewMemory.of("tea", "Likes tea."))
    assert told(await memories.search(PLACE, "beverages -tea", 10)) == ([], SearchMode.HYBRID, None)


async def test_a_search_fills_up_with_the_nearest_and_a_phrase_excludes_nothing(memories: MemoryService) -> None:
    for key, text in {"green": "Likes green tea.", "tea": "Likes tea green.", "dog": "Has a dog."}.items():
        await memories.put(PLACE, NewMemory.of(key, text))
    keys, mode, _ = told(await memories.search(PLACE, '"green tea"', 3))
    assert (sorted(keys), mode) == (["dog", "green", "tea"], SearchMode.HYBRID)


@pytest.mark.parametrize("rule", ["-" * 500, "- " * 500, "--- " * 400, "-(" * 500, "|---|---|\n" * 50])
async def test_rules_in_a_query_say_nothing(memories: MemoryService, rule: str) -> None:
    """Seen to fail where Postgres reads each dash as an exclusion: it runs out of memory for them."""
    await memories.put(PLACE, NewMemory.of("tea", "Likes tea."))
    for query in (f"tea\n{rule}", f"{rule} tea"):
        keys, mode, reason = told(await memories.search(PLACE, query, 10))
        assert (keys, mode, reason) == (["tea"], SearchMode.HYBRID, None)
