"""How Postgres finds memories by their words: in English by their stems, and in other languages as well."""

from __future__ import annotations

import pytest

from app.db.database import Database
from app.db.memories import PostgresMemoryRows
from app.engine.memories import MemoryPlace, NewMemory, Unembedded

PLACE = MemoryPlace("", "users/42")
TEXTS = {
    "tea": "She drinks green tea in the mornings.",
    "will": "Her brother is called Will.",
    "tee": "Die Nutzerin trinkt morgens grünen Tee.",
    "чай": "Она пьёт зелёный чай.",
    "coffee": "She has never liked coffee.",
    "mail": "Write to ada.lovelace@example.com, order number 1024.",
}


@pytest.fixture
async def rows(database: Database) -> PostgresMemoryRows:
    rows = PostgresMemoryRows(database)
    for key, text in TEXTS.items():
        await rows.put(PLACE, NewMemory.of(key, text))
    return rows


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("drinking", ["tea"]),
        ("liked --coffee", ["coffee"]),
        ("grünen --coffee", ["coffee", "tee"]),
        ("What does she like to drink in the morning?", ["tea", "coffee"]),
        ("trinkt", ["tee"]),
        ("grünen Tee", ["tee"]),
        ("ЧАЙ", ["чай"]),
        ("ada.lovelace@example.com", ["mail"]),
        ("1024", ["mail"]),
        ("Will", ["will"]),  # a stop word of English, and all there is
        ('"green tea"', ["tea"]),
        ('"tea green"', []),
        ("liked -coffee", []),
        ("she -coffee", ["tea"]),
        ("coffee or chocolate", ["coffee"]),
    ],
)
async def test_a_query_finds(rows: PostgresMemoryRows, query: str, found: list[str]) -> None:
    assert [record.key for record in await rows.with_words(PLACE, query, 10)] == found


@pytest.mark.parametrize(
    ("query", "left_out"),
    [
        ("she -drinking", {"tea"}),
        ("she --coffee", set[str]()),
        ("she ---coffee", set[str]()),
        ("tee -grünen -ЧАЙ", {"tee", "чай"}),
        ("write -ada.lovelace@example.com", {"mail"}),
        ('write -"order number" or -will', {"mail", "will"}),
        ("-well-known tea", set[str]()),
        ('"a http://b.example/c(d)!e f" -coffee', {"coffee"}),
        ('-"a http://b.example/c(d)!e it\'s" -coffee', {"coffee"}),
        ("http://b.example/it's?!coffee tea", set[str]()),
    ],
)
async def test_what_a_query_excludes_as_postgres_reads_it_is_not_near(
    rows: PostgresMemoryRows, query: str, left_out: set[str]
) -> None:
    for key, text in TEXTS.items():
        assert await rows.embed(Unembedded(PLACE, key, text), "a-model", [1.0])
    near = {record.key for record in await rows.nearest(PLACE, query, "a-model", [1.0], 10)}
    assert near == TEXTS.keys() - left_out
