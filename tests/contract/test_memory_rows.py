"""What every place for memories keeps: values under keys, apart from one another, found by words and by vectors."""

from __future__ import annotations

import asyncio

import pytest

from app.engine.memories import MemoryPlace, MemoryRecord, MemoryRows, NewMemory, Unembedded, WordsAlone

PLACE = MemoryPlace("", "users/42")
MODEL = "a-model"


def keys(records: list[MemoryRecord]) -> list[str]:
    return [record.key for record in records]


async def put(rows: MemoryRows, key: str, text: str, place: MemoryPlace = PLACE) -> MemoryRecord:
    return (await rows.put(place, NewMemory.of(key, text))).record


async def test_what_is_put_is_what_is_got(rows: MemoryRows) -> None:
    value = {"seat": "window", "rows": [1, 2.5, None, True], "ü": "\U0001f642"}
    first = await rows.put(PLACE, NewMemory.of("seat", value, "Sits at the window."))
    assert first.created
    assert await rows.get(PLACE, "seat") == first.record
    assert NewMemory("seat", first.record.value, first.record.text) == NewMemory.of(
        "seat", value, "Sits at the window."
    )
    assert (first.record.namespace, first.record.embedding_model) == ("users/42", None)
    assert first.record.created_at <= first.record.updated_at


async def test_a_later_put_replaces_value_and_text_and_keeps_the_time_of_the_first(rows: MemoryRows) -> None:
    first = (await rows.put(PLACE, NewMemory.of("seat", "window"))).record
    later = await rows.put(PLACE, NewMemory.of("seat", {"seat": "aisle"}))
    assert not later.created
    assert later.record == await rows.get(PLACE, "seat")
    assert (later.record.value, later.record.text) == ('{"seat":"aisle"}', '{"seat":"aisle"}')
    assert later.record.created_at == first.created_at
    assert later.record.updated_at > first.updated_at
    assert await rows.with_words(PLACE, "window", 10) == []


async def test_of_concurrent_puts_of_one_key_one_is_the_first_and_one_is_what_stays(rows: MemoryRows) -> None:
    puts = await asyncio.gather(*(rows.put(PLACE, NewMemory.of("seat", f"seat {number}")) for number in range(20)))
    assert sum(each.created for each in puts) == 1
    stays = await rows.get(PLACE, "seat")
    assert stays in [each.record for each in puts]
    assert await rows.page(PLACE, "", 10) == [stays]


async def test_pages_go_on_behind_a_key_in_the_order_of_code_points(rows: MemoryRows) -> None:
    for key in ("b", "B", "a/b", "ä", "a", "\U0001f642", "_"):
        await put(rows, key, "x")
    ordered = ["B", "_", "a", "a/b", "b", "ä", "\U0001f642"]
    assert keys(await rows.page(PLACE, "", 100)) == ordered
    assert keys(await rows.page(PLACE, "a", 2)) == ["a/b", "b"]
    assert await rows.page(PLACE, "\U0001f642", 2) == []


async def test_nothing_is_seen_from_another_tenant_or_namespace(comparing: MemoryRows) -> None:
    others = [MemoryPlace("acme", "users/42"), MemoryPlace("", "users/421"), MemoryPlace("", "users/42/trips")]
    for place in (PLACE, *others):
        await put(comparing, "seat", f"window seat of {place}", place)
        await comparing.embed(Unembedded(place, "seat", f"window seat of {place}"), MODEL, [1.0, 0.0])
    mine = await comparing.get(PLACE, "seat")
    assert mine is not None
    assert str(PLACE) in mine.text
    assert await comparing.page(PLACE, "", 10) == [mine]
    assert await comparing.with_words(PLACE, "window", 10) == [mine]
    assert await comparing.nearest(PLACE, "x", MODEL, [1.0, 0.0], 10) == [mine]
    assert await comparing.delete_some(PLACE, 10) == 1
    assert [len(await comparing.page(place, "", 10)) for place in others] == [1, 1, 1]
    assert not await comparing.delete(PLACE, "seat")


async def test_any_word_of_a_query_finds_and_all_of_them_go_first(rows: MemoryRows) -> None:
    await put(rows, "both", "Prefers a window seat on long flights, and has said so more than once this year.")
    await put(rows, "one", "window window window window")
    await put(rows, "none", "Likes green tea.")
    assert keys(await rows.with_words(PLACE, "window seat", 10)) == ["both", "one"]
    assert keys(await rows.with_words(PLACE, "window seat", 1)) == ["both"]
    assert await rows.with_words(PLACE, "dog", 10) == []


@pytest.mark.parametrize("query", ["", "  ", "!!!", "'", "a & b | !c <-> (", ":*", '"', "-", "\\", "%_"])
async def test_a_query_of_odd_characters_is_no_error(rows: MemoryRows, query: str) -> None:
    await put(rows, "tea", "Likes green tea.")
    assert await rows.with_words(PLACE, query, 10) == []


async def test_vectors_are_ordered_by_their_cosine_within_a_model_and_a_length(comparing: MemoryRows) -> None:
    vectors = {"same": [3.0, 0.0], "near": [1.0, 0.2], "far": [0.0, 1.0], "opposite": [-1.0, 0.0]}
    for key, vector in {**vectors, "longer": [1.0, 0.0, 0.0], "other": [1.0, 0.0], "none": None}.items():
        await put(comparing, key, "x")
        assert await comparing.embed(Unembedded(PLACE, key, "x"), "b-model" if key == "other" else MODEL, vector)
    assert await comparing.words_alone("x") is None
    assert keys(await comparing.nearest(PLACE, "x", MODEL, [2.0, 0.0], 10)) == list(vectors)
    assert keys(await comparing.nearest(PLACE, "x", MODEL, [2.0, 0.0], 2)) == ["same", "near"]
    assert keys(await comparing.nearest(PLACE, "x", "b-model", [2.0, 0.0], 10)) == ["other"]


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("tea", ["green", "black", "dog"]),
        ("tea -coffee", ["green", "dog"]),
        ("likes -coffee -dog", ["green"]),
        ('tea -"green tea"', ["black", "dog"]),
        ('tea -"tea green"', ["green", "black", "dog"]),
        ('tea -"', ["green", "black", "dog"]),
        ("-coffee", ["green", "dog"]),
        ("tea-coffee", ["green", "black", "dog"]),
        ("coffee or tea -coffee", ["green", "dog"]),
        ("-(coffee", ["green", "dog"]),
    ],
)
async def test_what_a_query_excludes_is_not_near(comparing: MemoryRows, query: str, left: list[str]) -> None:
    texts = {"green": "Likes green tea.", "black": "Likes tea, and coffee.", "dog": "Likes a dog!"}
    for key, text in texts.items():
        await put(comparing, key, text)
        assert await comparing.embed(Unembedded(PLACE, key, text), MODEL, [1.0, 0.0])
    assert sorted(keys(await comparing.nearest(PLACE, query, MODEL, [1.0, 0.0], 10))) == sorted(left)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("likes -coffee", ["dog", "green"]),
        ("green likes -coffee", ["green"]),
        ("-coffee", ["dog", "green"]),
        ('tea -"green tea"', ["black"]),
        ("coffee -coffee", []),
    ],
)
async def test_what_a_query_excludes_is_not_found_and_each_other_word_has_to_be_there(
    rows: MemoryRows, query: str, found: list[str]
) -> None:
    texts = {"green": "Likes green tea.", "black": "Likes tea, and coffee.", "dog": "Likes a dog!"}
    for key, text in texts.items():
        await put(rows, key, text)
    assert sorted(keys(await rows.with_words(PLACE, query, 10))) == found


@pytest.mark.parametrize(
    ("query", "only"),
    [
        ("-tea", True),
        ('-tea -"green tea"', True),
        ('-"see http://b.example/c(d)!e it\'s" -tea', True),
        ("-tea coffee", False),
        ("coffee -tea", False),
        ("", False),
        ("!!", False),
        ("-", False),
    ],
)
async def test_a_query_that_only_excludes_is_told(comparing: MemoryRows, query: str, only: bool) -> None:
    assert await comparing.words_alone(query) == (WordsAlone.ONLY_EXCLUDES if only else None)


async def test_vectors_of_another_model_or_length_or_place_are_not_comparable(comparing: MemoryRows) -> None:
    await put(comparing, "seat", "window")
    assert not await comparing.comparable(PLACE, MODEL, 2)
    assert await comparing.embed(Unembedded(PLACE, "seat", "window"), MODEL, [1.0, 0.0])
    assert await comparing.comparable(PLACE, MODEL, 2)
    assert not await comparing.comparable(PLACE, MODEL, 3)
    assert not await comparing.comparable(PLACE, "b-model", 2)
    assert not await comparing.comparable(MemoryPlace("", "users/43"), MODEL, 2)


async def test_an_embedding_stays_with_its_text_and_goes_with_it(comparing: MemoryRows) -> None:
    await put(comparing, "seat", "window")
    assert await comparing.embed(Unembedded(PLACE, "seat", "window"), MODEL, [1.0])
    same = (await comparing.put(PLACE, NewMemory.of("seat", {"now": "an object"}, "window"))).record
    assert same.embedding_model == MODEL
    assert keys(await comparing.nearest(PLACE, "x", MODEL, [1.0], 10)) == ["seat"]
    other = await put(comparing, "seat", "aisle")
    assert other.embedding_model is None
    assert await comparing.nearest(PLACE, "x", MODEL, [1.0], 10) == []


async def test_an_embedding_of_an_earlier_text_is_not_kept(comparing: MemoryRows) -> None:
    await put(comparing, "seat", "window")
    late = Unembedded(PLACE, "seat", "window")
    await put(comparing, "seat", "aisle")
    assert not await comparing.embed(late, MODEL, [1.0])
    record = await comparing.get(PLACE, "seat")
    assert record is not None
    assert record.embedding_model is None
    assert await comparing.nearest(PLACE, "x", MODEL, [1.0], 10) == []
    assert not await comparing.embed(Unembedded(PLACE, "gone", "window"), MODEL, [1.0])


async def test_a_namespace_is_deleted_a_part_at_a_time(rows: MemoryRows) -> None:
    for number in range(5):
        await put(rows, f"key{number}", "x")
    assert [await rows.delete_some(PLACE, 2) for _ in range(4)] == [2, 2, 1, 0]
    await put(rows, "one", "x")
    assert await rows.delete(PLACE, "one")
    assert await rows.get(PLACE, "one") is None
