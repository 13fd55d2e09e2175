"""The OpenAPI document: FastAPI's, completed with what it cannot know.

It is told here that errors are problems, that streams are text, and what an answer looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, get_type_hints

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api import errors, sse
from app.api.errors import STATUS, ProblemCode
from app.api.schemas.event import REF_TEMPLATE, variant_schemas
from app.api.schemas.fields import EXAMPLE_RUN_ID, JsonObject
from app.api.schemas.problem import Problem

_STREAM_EXAMPLE = (
    ": connected\nretry: 1000\n\n"
    'id: 4\nevent: text_delta\ndata: {"seq":4,"created_at":"2026-01-31T08:00:00.000000Z","type":"text_delta",'
    f'"run_id":"{EXAMPLE_RUN_ID}","thread_id":"customer-42","agent_name":"helper","state":"running","step":1,'
    '"message":null,"data":{"delta":"It is"},"schema_version":1}\n\n'
)
_DETAILS = {
    ProblemCode.VALIDATION_ERROR: "body.input: this is required",
    ProblemCode.NOT_FOUND: "there is nothing of that id",
    ProblemCode.UNKNOWN_AGENT: "there is no agent 'helper'",
    ProblemCode.UNAVAILABLE: "the service cannot reach its database; try again",
}
_MEMBERS: dict[ProblemCode, JsonObject] = {
    ProblemCode.VALIDATION_ERROR: {"errors": [{"loc": ["body", "input"], "msg": "this is required"}]},
    ProblemCode.UNKNOWN_TOOL: {"errors": [{"loc": ["body", "tools", 0], "msg": "there is no tool 'add'"}]},
    ProblemCode.IDEMPOTENCY_MISMATCH: {
        "errors": [{"loc": ["header", "Idempotency-Key"], "msg": "the key was used with another request"}]
    },
    ProblemCode.CONFLICT: {"current_status": "completed"},
    ProblemCode.EVENTS_TRIMMED: {"first_seq": 120},
}
_EVERYWHERE = (ProblemCode.VALIDATION_ERROR, ProblemCode.UNAVAILABLE, ProblemCode.INTERNAL)
_OF_BODIES = (ProblemCode.PAYLOAD_TOO_LARGE, ProblemCode.UNSUPPORTED_MEDIA_TYPE)
_NOT_DOCUMENTED = ("HTTPValidationError", "ValidationError")


def problems(*codes: ProblemCode) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: these errors, by status, besides those that every route may answer with."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in dict.fromkeys((*codes, *_EVERYWHERE)):
        status = STATUS[code]
        answer = found.setdefault(
            status.value,
            {"description": status.phrase, "content": {errors.MEDIA_TYPE: {"schema": _ref("Problem"), "examples": {}}}},
        )
        answer["content"][errors.MEDIA_TYPE]["examples"][code.value] = {"value": _example(code)}
        if code in (ProblemCode.UNAVAILABLE, ProblemCode.TOO_MANY_RUNS):
            answer["headers"] = {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}, "required": True}
            }
    return found


def of_bodies(*codes: ProblemCode) -> dict[int | str, dict[str, Any]]:
    """The same for a route whose method may bring a body, which is read even where it has to be empty."""
    return problems(*codes, *_OF_BODIES)


def stream(*codes: ProblemCode, **headers: str) -> dict[int | str, dict[str, Any]]:
    """The same for a route that answers with a stream.

    Args:
        headers: descriptions of the stream's own headers, by name.
    """
    content = {sse.MEDIA_TYPE: {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE}}
    answer: dict[str, Any] = {"description": "Server-sent events, each with an Event as its data.", "content": content}
    if headers:
        answer["headers"] = {
            name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    return {200: answer, **problems(*codes)}


def document_of(app: FastAPI) -> Callable[[], JsonObject]:
    """The application's `openapi`: the document, made once."""
    made: JsonObject = {}

    def document() -> JsonObject:
        if not made:
            made.update(_document(app))
        return made

    return document


def _document(app: FastAPI) -> JsonObject:
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=routes,
        tags=app.openapi_tags,
    )
    schemas: dict[str, JsonObject] = document["components"]["schemas"]
    for name, schema in {**variant_schemas(), **_problem_schemas()}.items():
        schemas.setdefault(name, schema)
    for name in _NOT_DOCUMENTED:
        schemas.pop(name, None)
    for schema in schemas.values():
        _tell_defaults(schema)
    examples = _examples(routes)
    for name, example in examples.items():
        schemas[name]["examples"] = [example]
    for operation in _operations(document):
        _complete(operation, examples)
    return document


def _problem_schemas() -> dict[str, JsonObject]:
    _, schemas = models_json_schema([(Problem, "validation")], ref_template=REF_TEMPLATE)
    for member in schemas["$defs"]["Problem"]["properties"].values():
        # These are absent where they have no meaning, not at some default.
        member.pop("default", None)
    return cast("dict[str, JsonObject]", schemas["$defs"])


def _examples(routes: Sequence[APIRoute]) -> dict[str, JsonObject]:
    """The examples of what routes read and answer, by schema: FastAPI takes every null out of them."""
    found: dict[str, JsonObject] = {}
    for route in routes:
        for model in (route.response_model, get_type_hints(route.endpoint).get("body")):
            if isinstance(model, type) and issubclass(model, BaseModel):
                extra = cast("JsonObject", model.model_config.get("json_schema_extra"))
                found[model.__name__] = extra["examples"][0]
    return found


def _tell_defaults(schema: JsonObject) -> None:
    """Put defaults into words: generators take a field that has one for a field that is always there."""
    properties: dict[str, JsonObject] = schema.get("properties", {})
    for field in properties.values():
        default = field.pop("default", None)
        if isinstance(default, str | int | float) and default != "":
            field["description"] = f"{field.get('description', '')} Default: {default}.".lstrip()


def _operations(document: JsonObject) -> Iterator[JsonObject]:
    for path in document["paths"].values():
        yield from path.values()


def _complete(operation: JsonObject, examples: dict[str, JsonObject]) -> None:
    """Give an operation its examples, its answers the request's id, and its parameters types without null."""
    for content in _json_contents(operation):
        content["example"] = examples[content["schema"]["$ref"].rpartition("/")[2]]
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _never_null(parameter["schema"])
    for answer in operation["responses"].values():
        answer.setdefault("headers", {})["X-Request-Id"] = {
            "description": "The request's id, in the log too.",
            "schema": {"type": "string"},
        }


def _json_contents(operation: JsonObject) -> Iterator[JsonObject]:
    if body := operation.get("requestBody"):
        yield body["content"]["application/json"]
    for answer in operation["responses"].values():
        content = answer.get("content", {})
        if sse.MEDIA_TYPE in content:
            content.pop("application/json", None)
        elif "application/json" in content:
            yield content["application/json"]


def _never_null(schema: JsonObject) -> JsonObject:
    """A parameter is absent or has a value."""
    forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
    if len(forms) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **forms[0]}


def _example(code: ProblemCode) -> JsonObject:
    status = STATUS[code]
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": _DETAILS.get(code, code.value.replace("_", " ")),
        "code": code.value,
        "request_id": "019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d58",
        **_MEMBERS.get(code, {}),
    }


def _ref(name: str) -> JsonObject:
    return {"$ref": REF_TEMPLATE.format(model=name)}
