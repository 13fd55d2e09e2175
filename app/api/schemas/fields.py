"""Values that many requests and answers share."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from app.engine.agent import AGENT_NAME_PATTERN

JsonObject = dict[str, Any]

THREAD_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,254}$"
AGENT_REF_PATTERN = AGENT_NAME_PATTERN.removesuffix("$") + r"(@[1-9][0-9]{0,8})?$"
MAX_METADATA_KEYS = 32

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

EXAMPLE_RUN_ID = "019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d57"
EXAMPLE_TIME = "2026-01-31T08:00:00.000000Z"


class RequestModel(BaseModel):
    """What a request may say; anything else is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resource(BaseModel):
    """What an answer says. Every field is there, null where it has no value; fields may be added."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


def example(value: JsonObject) -> ConfigDict:
    """A model's `model_config` with its example; the rest is its parents'."""
    return ConfigDict(json_schema_extra={"examples": [value]})


def _moment(value: object) -> datetime:
    # Pydantic's own reading would also take numbers, as seconds since 1970, and times without an offset.
    if not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise ValueError("should be a time with its offset, such as 2026-01-31T08:00:00Z")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except OverflowError:
        raise ValueError("this is before the first or after the last year that can be stored") from None


def _digits(text: object) -> object:
    if isinstance(text, str):
        if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) is None:
            raise ValueError("should be an integer")
        return int(text)
    return text


def _decimal(text: object) -> object:
    if isinstance(text, str):
        if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII) is None:
            raise ValueError("should be a number")
        return float(text)
    return text


def _true_or_false(text: object) -> object:
    if isinstance(text, str):
        if text not in ("true", "false"):
            raise ValueError("should be true or false")
        return text == "true"
    return text


Moment = Annotated[
    datetime,
    PlainValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": [EXAMPLE_TIME]}),
]
"""A time that a request gives, with its offset; in UTC once it is read."""

Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "examples": [EXAMPLE_TIME]})]
"""A time that an answer gives."""

ThreadId = Annotated[
    str,
    StringConstraints(pattern=THREAD_ID_PATTERN),
    Field(description="The caller's own string, or a UUIDv7.", examples=["customer-42"]),
]
AgentRef = Annotated[str, StringConstraints(pattern=AGENT_REF_PATTERN)]
Metadata = Annotated[
    dict[str, str],
    Field(max_length=MAX_METADATA_KEYS, description="At most 32 strings.", examples=[{"team": "support"}]),
]

# Query strings are text: what stands for other types is read here, as strictly as JSON is.
# They stand last in an `Annotated`: bounds that come after them are left out of the document.
FROM_DIGITS = BeforeValidator(_digits)
FROM_DECIMAL = BeforeValidator(_decimal)
FROM_TRUE_OR_FALSE = BeforeValidator(_true_or_false)
