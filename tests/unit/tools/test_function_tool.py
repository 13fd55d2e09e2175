from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal, Optional, Union

import jsonschema_rs
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel

from app.engine.effects import ToolEffect
from app.tools import FunctionTool, ToolContext, ToolDefinitionError, tool


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    """Where somebody lives."""

    title: str = Field(title="A title of its own")
    city: str


class Node(BaseModel):
    label: str
    children: list[Node] = []


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


@dataclass
class Point:
    x: float
    y: float


def schema_of(decorated: FunctionTool[..., Any]) -> dict[str, Any]:
    schema = dict(decorated.spec.parameters)
    jsonschema_rs.meta.validate(schema)
    return schema


def test_bare_decorator_takes_name_and_first_paragraph_and_is_unsafe_by_default() -> None:
    @tool
    def search(query: str) -> str:
        """Search the archive,
        all of it.

        Longer explanations are for people.

        Args:
            query: what to look for,
                in plain words.
        """
        return query

    assert search.spec.name == "search"
    assert search.spec.description == "Search the archive, all of it."
    assert search.spec.effect is ToolEffect.UNSAFE
    assert search.spec.source == "python"
    assert search.timeout_s == 30
    assert schema_of(search) == {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "what to look for, in plain words."}},
        "required": ["query"],
        "additionalProperties": False,
    }


def test_decorator_with_arguments_overrides_what_the_function_says() -> None:
    @tool(name="find", description="Find it.", timeout_s=2.5, effect="read_only")
    def search(query: str) -> str:
        """Search."""
        return query

    assert (search.spec.name, search.spec.description) == ("find", "Find it.")
    assert (search.timeout_s, search.spec.effect) == (2.5, ToolEffect.READ_ONLY)


async def test_a_tool_stays_callable_as_the_plain_function() -> None:
    @tool
    def double(number: int) -> int:
        """Double a number."""
        return number * 2

    @tool
    async def triple(number: int) -> int:
        return number * 3

    assert double(4) == 8
    assert await triple(number=4) == 12
    assert vars(double)["__name__"] == "double"
    assert double.__doc__ == "Double a number."
    assert triple.spec.description == ""


def test_schema_covers_defaults_optionals_enums_literals_models_lists_and_unions() -> None:
    @tool
    def everything(
        colour: Colour,
        size: Literal["s", "m"],
        address: Address,
        tags: list[str],
        value: Union[int, str],  # noqa: UP007 - the older spelling is promised too
        note: Optional[str] = None,  # noqa: UP045 - likewise
        limit: Annotated[int, Field(ge=1, description="how many")] = 10,
        shade: Colour = Colour.BLUE,
        day: date | None = None,
    ) -> None:
        """Do everything.

        Args:
            limit: the docstring loses to the annotation.
            address (Address): where to.
        """

    schema = schema_of(everything)
    properties = schema["properties"]
    assert schema["required"] == ["colour", "size", "address", "tags", "value"]
    assert properties["colour"] == {"$ref": "#/$defs/Colour"}
    assert schema["$defs"]["Colour"] == {"enum": ["red", "blue"], "type": "string"}
    assert properties["size"] == {"enum": ["s", "m"], "type": "string"}
    assert properties["address"] == {"$ref": "#/$defs/Address", "description": "where to."}
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}}
    assert properties["value"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert properties["note"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    assert properties["limit"] == {"type": "integer", "minimum": 1, "description": "how many", "default": 10}
    assert properties["shade"] == {"$ref": "#/$defs/Colour", "default": "blue"}
    assert properties["day"]["anyOf"][0] == {"type": "string", "format": "date"}


def test_titles_are_dropped_but_a_property_named_title_stays() -> None:
    @tool
    def save(address: Address, title: str) -> None: ...

    schema = schema_of(save)
    assert schema["properties"]["title"] == {"type": "string"}
    assert schema["$defs"]["Address"]["properties"]["title"] == {"type": "string"}
    assert "title" not in schema
    assert "title" not in schema["$defs"]["Address"]


def test_recursive_models_keep_their_definitions_and_the_root_is_an_object() -> None:
    @tool
    def by_hint(node: Node) -> None: ...

    @tool(args_model=Node)
    def by_model(node: Node) -> None: ...

    for decorated in (by_hint, by_model):
        schema = schema_of(decorated)
        assert schema["type"] == "object"
        assert schema["$defs"]["Node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}


def test_discriminated_unions_are_plain_json_schema() -> None:
    @tool
    def adopt(pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None: ...

    assert schema_of(adopt)["properties"]["pet"] == {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}


def test_any_parameter_name_is_allowed() -> None:
    @tool
    def odd(schema: str, model_config: int, _hidden: bool, self_: str = "x") -> None: ...

    assert set(schema_of(odd)["properties"]) == {"schema", "model_config", "_hidden", "self_"}


def test_a_default_that_json_cannot_show_leaves_the_argument_optional() -> None:
    marker = object()

    @tool
    def fetch(key: str, fallback: Any = marker) -> None: ...

    schema = schema_of(fetch)
    assert schema["required"] == ["key"]
    assert "default" not in schema["properties"]["fallback"]


def test_no_parameters_is_an_empty_object() -> None:
    @tool
    def now() -> str:
        return "now"

    assert schema_of(now) == {"type": "object", "properties": {}, "additionalProperties": False}


def test_the_context_parameter_is_found_in_every_spelling_and_is_not_in_the_schema() -> None:
    @tool
    def plain(query: str, ctx: ToolContext) -> None: ...

    @tool
    def optional(ctx: ToolContext | None = None, query: str = "") -> None: ...

    @tool
    def old_optional(query: str, context: Optional[ToolContext] = None) -> None: ...  # noqa: UP045

    @tool
    def annotated(query: str, where: Annotated[ToolContext, "injected"]) -> None: ...

    for decorated in (plain, optional, old_optional, annotated):
        assert set(schema_of(decorated)["properties"]) == {"query"}
        assert decorated.arguments.context_parameter in ("ctx", "context", "where")


def test_args_model_gives_the_schema_and_forbids_unknown_arguments() -> None:
    class Search(BaseModel):
        query: str = Field(description="what to look for")
        limit: int = 5

    @tool(args_model=Search)
    def by_instance(args: Search, ctx: ToolContext) -> None: ...

    @tool(args_model=Search)
    def by_fields(query: str, limit: int) -> None: ...

    for decorated in (by_instance, by_fields):
        assert schema_of(decorated) == {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "what to look for"},
                "limit": {"type": "integer", "default": 5},
            },
            "required": ["query"],
            "additionalProperties": False,
        }


def test_args_model_that_allows_unknown_arguments_keeps_its_word() -> None:
    class Loose(BaseModel):
        model_config = ConfigDict(extra="allow")

    @tool(args_model=Loose)
    def take(args: Loose) -> None: ...

    assert schema_of(take)["additionalProperties"] is True


def test_dataclass_parameters_have_a_schema() -> None:
    @tool
    def move(to: Point) -> None: ...

    assert schema_of(move)["$defs"]["Point"]["required"] == ["x", "y"]


def test_a_wrapped_function_keeps_its_own_hints() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @tool
    @logged
    def search(query: str, day: date | None = None) -> str:
        return query

    assert set(schema_of(search)["properties"]) == {"query", "day"}


class TestRefusals:
    def test_star_arguments(self) -> None:
        def spread(*values: int) -> None: ...

        def named(**values: int) -> None: ...

        functions: list[Callable[..., None]] = [spread, named]
        for function in functions:
            with pytest.raises(ToolDefinitionError, match="'values' takes any number of arguments"):
                tool(function)

    def test_a_missing_hint_names_tool_and_parameter(self) -> None:
        def search(query, limit: int) -> None: ...

        with pytest.raises(ToolDefinitionError, match="tool 'search': parameter 'query' has no type hint"):
            tool(search)

    def test_a_hint_that_cannot_be_resolved(self) -> None:
        def search(query: NoSuchType) -> None: ...  # noqa: F821 # pyright: ignore[reportUndefinedVariable]

        with pytest.raises(ToolDefinitionError, match="cannot resolve the type hint 'NoSuchType'"):
            tool(search)

    def test_a_hint_that_json_has_no_form_for(self) -> None:
        def search(lock: Iterator[object] | FunctionTool[..., Any]) -> None: ...

        with pytest.raises(ToolDefinitionError, match="tool 'search': no JSON schema"):
            tool(search)

    def test_positional_only(self) -> None:
        def search(query: str, /) -> None: ...

        with pytest.raises(ToolDefinitionError, match="positional-only"):
            tool(search)

    def test_a_field_as_default(self) -> None:
        def search(query: str = Field(description="what")) -> None: ...

        with pytest.raises(ToolDefinitionError, match="write Annotated"):
            tool(search)

    def test_two_contexts(self) -> None:
        def search(one: ToolContext, two: ToolContext) -> None: ...

        with pytest.raises(ToolDefinitionError, match="more than one ToolContext parameter: one, two"):
            tool(search)

    def test_generators(self) -> None:
        def count() -> Iterator[int]:
            yield 1

        async def stream() -> AsyncIterator[int]:
            yield 1

        for function in (count, stream):
            with pytest.raises(ToolDefinitionError, match="a tool returns one value"):
                tool(function)

    def test_what_is_no_function(self) -> None:
        with pytest.raises(ToolDefinitionError, match="takes a function"):
            tool(functools.partial(print, "x"))

    @pytest.mark.parametrize("name", ["", "has space", "a.b", "ä", "1st", "x" * 65, "line\n"])
    def test_names_that_no_provider_takes(self, name: str) -> None:
        with pytest.raises(ToolDefinitionError, match="tool name"):
            tool(name=name)(lambda: None)

    def test_an_unknown_effect(self) -> None:
        with pytest.raises(
            ToolDefinitionError, match="unknown effect 'harmless'; one of read_only, idempotent, unsafe"
        ):
            tool(effect="harmless")(schema_of)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
    def test_a_timeout_that_is_none(self, timeout_s: float) -> None:
        with pytest.raises(ToolDefinitionError, match="timeout_s"):
            tool(timeout_s=timeout_s)(schema_of)

    def test_an_option_that_does_not_exist(self) -> None:
        with pytest.raises(TypeError):
            tool(retries=3)  # pyright: ignore[reportCallIssue]

    def test_args_model_that_the_function_does_not_take(self) -> None:
        class Search(BaseModel):
            query: str
            limit: int

        with pytest.raises(ToolDefinitionError, match=r"does not take these fields of its args_model: \['limit'\]"):
            tool(args_model=Search)(_takes_query)
        with pytest.raises(ToolDefinitionError, match=r"parameters that its args_model does not have: \['query'\]"):
            tool(args_model=Point2)(_takes_query_and_xy)

    def test_args_model_without_named_fields(self) -> None:
        class Names(RootModel[list[str]]):
            pass

        def search(names: Names) -> None: ...

        with pytest.raises(ToolDefinitionError):
            tool(args_model=Names)(search)


class Point2(BaseModel):
    x: int
    y: int


def _takes_query(query: str) -> None: ...


def _takes_query_and_xy(query: str, x: int, y: int) -> None: ...
