"""The condition of a rule, as data: which deeds it is about."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from app.engine.deed import Deed
from app.engine.effort import Effort
from app.engine.json_path import JsonDocument, json_path
from app.engine.json_value import any_equal

_MAX_GLOB_CHARS = 200
_MAX_IN_VALUES = 1000
_ABSENT = object()


class Operator(StrEnum):
    EQ = "eq"
    NE = "ne"
    LT = "lt"
    GT = "gt"
    IN = "in"
    GLOB = "glob"


_Glob = Annotated[str, StringConstraints(min_length=1, max_length=_MAX_GLOB_CHARS)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArgumentTest(_Data):
    """A test of a call's arguments. It holds if any of the values that `path` selects fits; `ne` if none is equal, so
    also where the path selects nothing.

    Values compare as JSON: 1 equals 1.0 and not true; `lt` and `gt` compare numbers with numbers, and strings with
    strings by code point.
    """

    path: str = Field(
        max_length=500,
        description="JSONPath (RFC 9535) on the arguments, without the functions `match` and `search`.",
        examples=["$.amount", "$.to[*]"],
    )
    op: Operator = Field(description="`glob` knows `*`, `?`, `[seq]` and `[!seq]`, and minds upper and lower case.")
    value: Any = Field(
        description="A number or a string for `lt` and `gt`, a list of at most 1000 values for `in`, "
        "a string of at most 200 characters for `glob`, any value for `eq` and `ne`.",
        examples=[100],
    )

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        json_path(path)
        return path

    @field_validator("value")
    @classmethod
    def _fits_the_operator(cls, value: Any, info: ValidationInfo) -> Any:
        match info.data.get("op"):
            case Operator.LT | Operator.GT if not _is_number(value) and not isinstance(value, str):
                raise ValueError("should be a number or a string for lt and gt")
            case Operator.IN if not isinstance(value, list) or len(cast("list[Any]", value)) > _MAX_IN_VALUES:
                raise ValueError(f"should be a list of at most {_MAX_IN_VALUES} values for in")
            case Operator.GLOB if not isinstance(value, str) or len(value) > _MAX_GLOB_CHARS:
                raise ValueError(f"should be a string of at most {_MAX_GLOB_CHARS} characters for glob")
            case _:
                return cast("Any", value)

    def holds(self, arguments: JsonDocument, effort: Effort) -> bool:
        """Raises: TooMuchEffort: the arguments or the value are too large, or nested too deep, to tell."""
        selected = [] if arguments.root is None else json_path(self.path).values(arguments, effort)
        match self.op:
            case Operator.EQ | Operator.NE | Operator.IN:
                wanted = self.value if self.op is Operator.IN else [self.value]
                return any_equal(selected, wanted, effort) is (self.op is not Operator.NE)
            case Operator.LT:
                return any(_same_kind(each, self.value) and each < self.value for each in selected)
            case Operator.GT:
                return any(_same_kind(each, self.value) and each > self.value for each in selected)
            case Operator.GLOB:
                return any(isinstance(each, str) and _fits(each, self.value, effort) for each in selected)


class Condition(_Data):
    """All that is stated must hold; an empty condition holds always."""

    tool_name: _Glob | None = Field(
        default=None,
        description="Glob on the tool's name; a call of a subagent is one of the tool `delegate_to_<agent>`.",
        examples=["send_*"],
    )
    agent_name: _Glob | None = Field(default=None, description="Glob on the name of the agent that acts.")
    arguments: list[ArgumentTest] = Field(default_factory=list[ArgumentTest], max_length=32)
    context: dict[Annotated[str, StringConstraints(min_length=1, max_length=200)], Any] = Field(
        default_factory=dict[str, Any],
        max_length=32,
        description="Values that the run's context must have: by key, or by a dotted path into its objects.",
        examples=[{"user.tier": "free"}],
    )

    def holds(self, deed: Deed, arguments: JsonDocument, effort: Effort) -> bool:
        """Raises: as `ArgumentTest.holds`."""
        if self.tool_name is not None and (deed.tool_name is None or not _fits(deed.tool_name, self.tool_name, effort)):
            return False
        if self.agent_name is not None and not _fits(deed.agent_name, self.agent_name, effort):
            return False
        for key, value in self.context.items():
            found = _looked_up(deed.context, key)
            if found is _ABSENT or not any_equal([found], [value], effort):
                return False
        return all(test.holds(arguments, effort) for test in self.arguments)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_kind(one: object, other: object) -> bool:
    return (isinstance(one, str) and isinstance(other, str)) or (_is_number(one) and _is_number(other))


def _fits(text: str, glob: str, effort: Effort) -> bool:
    # The first use of a glob compiles it, which takes some microseconds a character.
    effort.spend(len(glob) + len(text) * len(glob) // 1000)
    return fnmatchcase(text, glob)


def _looked_up(context: Mapping[str, Any], key: str) -> object:
    """A key of the context, or else a dotted path into its objects; `_ABSENT` where there is neither."""
    if key in context:
        return context[key]
    value: object = context
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = cast("Mapping[str, object]", value)[part]
    return value
