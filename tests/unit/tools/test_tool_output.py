from __future__ import annotations

import enum
import json
import math
import uuid
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from app.tools.output import bounded, output_of, to_json

Pair = namedtuple("Pair", ["left", "right"])


class Level(enum.Enum):
    LOW = "low"


class Code(enum.IntEnum):
    OK = 200


class User(BaseModel):
    name: str
    born: date
    password: SecretStr = SecretStr("hidden")


class Holder(BaseModel, arbitrary_types_allowed=True):
    thing: object


@dataclass
class Point:
    x: float
    tags: list[Any] = field(default_factory=list[Any])


class Celsius(float):
    pass


class Word(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        return "Word()"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        return "Broken()"


class BrokenMapping(UserDict[str, int]):
    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no")


class Plain:
    def __str__(self) -> str:
        return "plain\x00 text"


def parsed(value: object) -> Any:
    return json.loads(to_json(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ([1, 2.5, True, "é"], [1, 2.5, True, "é"]),
        (
            User(name="Ada", born=date(1815, 12, 10)),
            {"name": "Ada", "born": "1815-12-10", "password": "**********"},
        ),
        (Point(1.0, ["a"]), {"x": 1.0, "tags": ["a"]}),
        (Decimal("1.10"), "1.10"),
        (datetime(2025, 1, 2, 3, 4, tzinfo=UTC), "2025-01-02T03:04:00+00:00"),
        (date(2025, 1, 2), "2025-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(hours=1), "1:00:00"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ((1, 2), [1, 2]),
        (deque([1, 2]), [1, 2]),
        (Pair(1, 2), {"left": 1, "right": 2}),
        (OrderedDict(a=1), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        (bytearray(b"ab"), "ab"),
        (memoryview(b"ab"), "ab"),
        ([Level.LOW, Code.OK], ["low", 200]),
        (Celsius(21.5), 21.5),
        (PurePosixPath("/a/b"), "/a/b"),
        (ValueError("bad"), "bad"),
        (Plain(), "plain\ufffd text"),
        (Broken(), "<Broken>"),
        ({1: "a", None: "b", Level.LOW: "c"}, {"1": "a", "null": "b", "low": "c"}),
        ({(1, 2): "a"}, {"(1, 2)": "a"}),
        ([math.nan, math.inf, -math.inf], [None, None, None]),
        (2**63, 2**63),
        (2**80, str(2**80)),
        ([-(2**70)], [str(-(2**70))]),
        (10**5000, "<integer of 16610 bits>"),
        (["\ud800", "a\x00b", {"k\x00\ud800": 1}], ["\ufffd", "a\ufffdb", {"k\ufffd\ufffd": 1}]),
        ({"literal": "\\u0000 and \\\\u0000"}, {"literal": "\\u0000 and \\\\u0000"}),
        (["\x00\x00\\\x00"], ["\ufffd\ufffd\\\ufffd"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_value_has_a_json_form(value: object, expected: object) -> None:
    assert parsed(value) == expected


def test_mixed_sets_keep_all_their_members() -> None:
    assert sorted(map(str, parsed({1, "a"}))) == ["1", "a"]


def test_cycles_and_deep_nesting_are_cut_where_they_are() -> None:
    cycle: list[Any] = ["before"]
    cycle.append({"again": cycle})
    assert parsed(cycle) == ["before", {"again": "[cut: refers to itself]"}]

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "[cut: nested too deeply]" in to_json(deep)
    assert parsed([[1] for _ in range(3)]) == [[1], [1], [1]]

    moderate: object = "core"
    for _ in range(64):
        moderate = {"in": moderate}
    assert "core" in to_json(moderate)


def test_shared_references_do_not_unfold_without_end() -> None:
    shared: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    # The half surrogate pair comes first, so that orjson gives up before it unfolds the rest.
    text = to_json(["\ud800", shared])
    assert "[cut: too many values]" in text
    assert len(text) < 1_000_000


def test_a_value_that_breaks_somewhere_keeps_the_rest() -> None:
    assert parsed([1, Broken(), {"a": Broken()}]) == [1, "<Broken>", {"a": "<Broken>"}]
    assert parsed(Holder(thing=Broken())) == {"thing": "<Broken>"}
    assert parsed([1, BrokenMapping(a=1)])[0] == 1
    cyclic = Point(1.0)
    cyclic.tags.append(cyclic)
    assert parsed(cyclic) == {"x": 1.0, "tags": ["[cut: refers to itself]"]}


def test_text_is_the_message_as_it_is_and_a_json_string_in_the_record() -> None:
    output = output_of('say "hi"\n', max_chars=100, max_bytes=100)
    assert output.content == 'say "hi"\n'
    assert json.loads(output.json) == 'say "hi"\n'
    odd = output_of(Word("word"), max_chars=100, max_bytes=100)
    assert (odd.content, odd.json) == ("word", '"word"')
    assert output_of(Level.LOW, max_chars=100, max_bytes=100).content == '"low"'


def test_other_values_are_json_in_both() -> None:
    output = output_of({"a": [1, None]}, max_chars=100, max_bytes=100)
    assert output.content == output.json == '{"a":[1,null]}'
    assert output_of(None, max_chars=100, max_bytes=100).content == "null"


def test_a_long_message_is_cut_with_a_note_inside_the_bound() -> None:
    text = "x" * 5_000
    content = bounded(text, 1_000)
    assert len(content) <= 1_000
    kept = content.count("x")
    assert content == "x" * kept + f"\n[output cut: {5_000 - kept} more characters]"
    assert kept > 950
    assert bounded(text, 5_000) == text


def test_a_long_record_is_a_json_string_with_a_note() -> None:
    output = output_of({"rows": ['"quoted"'] * 1_000}, max_chars=200, max_bytes=1_000)
    text = json.loads(output.json)
    assert text.startswith('{"rows":["\\"quoted')
    assert text.endswith("more characters]")
    assert 800 < len(output.json.encode()) <= 1_000
    assert len(output.content) <= 200


def test_a_megabyte_of_multibyte_text_fits_the_records_bound() -> None:
    for text in ("é" * 1_200_000, "\x01" * 1_200_000, "😀" * 600_000):
        output = output_of(text, max_chars=12_000, max_bytes=2**20)
        assert 0.95 * 2**20 < len(output.json.encode()) <= 2**20
        assert json.loads(output.json).startswith(text[:100])
        assert len(output.content) <= 12_000


any_text = st.text(st.characters(exclude_categories=()))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30)
    | st.floats()
    | any_text
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers()
    | st.integers(4_000, 6_000).map(lambda digits: 10**digits)
    | st.sampled_from([Level.LOW, Code.OK, Broken(), Plain(), object(), Celsius(1), Word("w"), len, int])
)
keys = st.one_of(any_text, st.integers(), st.floats(), st.none(), st.booleans(), st.dates(), st.tuples(st.integers()))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(keys, inner, max_size=5)
        | st.tuples(inner, inner)
        | st.builds(Point, st.floats(), st.lists(inner, max_size=3))
        | st.builds(Holder, thing=inner)
        | st.builds(deque, st.lists(inner, max_size=3))
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=values, max_chars=st.integers(0, 300), max_bytes=st.integers(64, 600))
def test_conversion_never_raises_and_always_fits(value: object, max_chars: int, max_bytes: int) -> None:
    output = output_of(value, max_chars=max_chars, max_bytes=max_bytes)
    assert len(output.content) <= max_chars
    assert len(output.json.encode()) <= max_bytes
    orjson.loads(output.json)
    for text in (output.content, output.json):
        text.encode()
        assert "\x00" not in text
    assert "\x00" not in str(json.loads(output.json))


@settings(deadline=None)
@given(text=any_text, max_chars=st.integers(0, 200))
def test_bounding_keeps_the_beginning(text: str, max_chars: int) -> None:
    content = bounded(text, max_chars)
    assert len(content) <= max_chars
    kept = content.split("\n[output cut: ")[0]
    assert all(a in (b, "\ufffd") for a, b in zip(kept, text, strict=False))
