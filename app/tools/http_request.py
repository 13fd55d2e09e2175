"""The request of an HTTP tool: its definition as a template, and that template filled for one call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from yarl import URL

from app.engine.tool_definitions import SECRET_PLACEHOLDER, URL_PLACEHOLDER, HttpToolDefinition
from app.tools.egress import Request, Target
from app.tools.errors import CallError, SecretError, ToolDefinitionError
from app.tools.secrets import Secrets

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, token
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
# What the client says itself: how the connection is used, where the body ends, and which call this is.
_OURS = re.compile(
    r"accept-encoding|connection|content-(encoding|length)|expect|host|idempotency-key|keep-alive|proxy-.*|te|trailer"
    r"|transfer-encoding|upgrade"
)
_IN_THE_QUERY = frozenset({"GET", "DELETE"})
# RFC 3986: what may stand in a path or a query as it is, and % of what is encoded already.
_PATH_CHARS = "/:@!$&'()*+,;=~%"
_QUERY_CHARS = _PATH_CHARS + "?"
_ODD_CHARS = re.compile(r"[\x00-\x20\x7f\\]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SEPARATOR = re.compile(r"[/\\]")
_DOTS = (".", "..")


@dataclass(frozen=True, slots=True)
class _Template:
    """Text with placeholders: literals and names in turn, beginning and ending with a literal."""

    pieces: tuple[str, ...]

    @classmethod
    def of(cls, text: str, safe: str) -> _Template:
        pieces = URL_PLACEHOLDER.split(text)
        return cls(tuple(piece if number % 2 else quote(piece, safe=safe) for number, piece in enumerate(pieces)))

    @property
    def names(self) -> tuple[str, ...]:
        return self.pieces[1::2]

    def filled(self, values: Mapping[str, str]) -> str:
        texts = (quote(values[piece], safe="") if number % 2 else piece for number, piece in enumerate(self.pieces))
        return "".join(texts)


class RequestTemplate:
    """What a definition says about its request.

    Raises:
        ToolDefinitionError: no call of it could be sent; says why.
    """

    def __init__(self, definition: HttpToolDefinition) -> None:
        if _ODD_CHARS.search(definition.url) or _BAD_ESCAPE.search(definition.url):
            raise ToolDefinitionError("url: should have every odd character percent-encoded")
        parts = urlsplit(definition.url)
        if parts.fragment:
            raise ToolDefinitionError("url: should have no fragment; it would not be sent")
        self._method = definition.method
        try:
            origin = URL(f"{parts.scheme}://{parts.netloc}/")
        except ValueError as error:
            raise ToolDefinitionError(f"url: {error}") from error
        self.target = _target(origin, ToolDefinitionError)
        self._path = _Template.of(parts.path or "/", _PATH_CHARS)
        self._query = _Template.of(parts.query, _QUERY_CHARS)
        _check_placeholders(definition.parameters, {*self._path.names, *self._query.names})
        if _has_dots(self._path.filled(dict.fromkeys(self._path.names, "x"))):
            raise ToolDefinitionError("url: should have no . or .. in its path")
        _check_headers(definition)
        self._headers = {name: value for name, value in definition.headers.items() if not _secret_names(value)}
        self._secret_headers = {name: value for name, value in definition.headers.items() if _secret_names(value)}

    @property
    def secret_names(self) -> frozenset[str]:
        return frozenset(name for value in self._secret_headers.values() for name in _secret_names(value))

    def filled(self, arguments: Mapping[str, Any], secrets: Secrets, idempotency_key: str | None) -> Request:
        """The request of one call.

        Args:
            arguments: valid ones, with their defaults.

        Raises:
            CallError: an argument cannot go into the URL, or a secret not to its host.
        """
        in_url = {*self._path.names, *self._query.names}
        texts = {name: _text(name, arguments.get(name)) for name in in_url}
        path = self._filled_path(texts)
        query = self._query.filled(texts)
        rest = {name: value for name, value in arguments.items() if name not in in_url}
        headers = {"Accept": "application/json, */*;q=0.5"}
        body = None
        if self._method in _IN_THE_QUERY:
            query = "&".join(part for part in (query, *_pairs(rest)) if part)
        else:
            headers["Content-Type"] = "application/json"
            body = json.dumps(rest, ensure_ascii=False, allow_nan=False).encode()
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        url = f"{self.target.url.origin()}{path}" + (f"?{query}" if query else "")
        return Request(
            method=self._method,
            target=_target(URL(url, encoded=True), CallError),
            headers=_merged(headers, self._headers, self._secret_headers),
            secret_headers={name: self._with_secrets(value, secrets) for name, value in self._secret_headers.items()},
            body=body,
        )

    def _filled_path(self, texts: Mapping[str, str]) -> str:
        for name in self._path.names:
            text = texts[name]
            # Some servers decode %2F before they look at the path.
            if not text or _CONTROL.search(text) or any(part in _DOTS for part in _SEPARATOR.split(text)):
                raise CallError(f"{name}: cannot be empty, or have control characters or the segments . and .. in it")
        return self._path.filled(texts)

    def _with_secrets(self, value: str, secrets: Secrets) -> str:
        filled = SECRET_PLACEHOLDER.sub(lambda place: secrets.for_host(place[1], self.target.host), value)
        if not _HEADER_VALUE.fullmatch(filled):
            raise SecretError(f"a secret of {', '.join(_secret_names(value))} cannot stand in a header")
        return filled


def _target(url: URL, error_type: type[CallError] | type[ToolDefinitionError]) -> Target:
    try:
        return Target.of(url)
    except ValueError as error:
        raise error_type(f"url: {error}") from error


def _secret_names(value: str) -> list[str]:
    return SECRET_PLACEHOLDER.findall(value)


def _has_dots(path: str) -> bool:
    return any(unquote(segment) in _DOTS for segment in path.split("/"))


def _check_placeholders(schema: Mapping[str, Any], names: Iterable[str]) -> None:
    properties: object = schema.get("properties")
    required: object = schema.get("required")
    always = cast("list[object]", required) if isinstance(required, list) else []
    fields = cast("dict[str, object]", properties) if isinstance(properties, dict) else {}
    for name in sorted(names):
        field = fields.get(name)
        if name not in always and not (isinstance(field, dict) and "default" in field):
            raise ToolDefinitionError(f"url: {{{name}}} should be required, or have a default")


def _check_headers(definition: HttpToolDefinition) -> None:
    seen: set[str] = set()
    for name, value in definition.headers.items():
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value) or lower in seen:
            raise ToolDefinitionError(f"headers: {name!r} is no HTTP header, or stands there twice")
        seen.add(lower)
        if _OURS.fullmatch(lower):
            raise ToolDefinitionError(f"headers: {name!r} is set by the service itself")
        if lower == "content-type" and definition.method not in _IN_THE_QUERY and "json" not in value.lower():
            raise ToolDefinitionError(f"headers: {name!r} should be a JSON type; that is what the body is")
        rest = SECRET_PLACEHOLDER.sub("", value)
        if "{{" in rest or "}}" in rest:
            raise ToolDefinitionError(f"headers: {name!r} has a placeholder that is not {{{{ secrets.name }}}}")


def _merged(ours: Mapping[str, str], theirs: Mapping[str, str], secret: Mapping[str, str]) -> dict[str, str]:
    """Ours, but for those that the definition has, too."""
    stated = {name.lower() for name in (*theirs, *secret)}
    return {name: value for name, value in ours.items() if name.lower() not in stated} | dict(theirs)


def _text(name: str, value: object) -> str:
    match value:
        case str():
            return value
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            raise CallError(f"{name}: should be text, a number or a boolean, since it becomes part of a URL")


def _pairs(arguments: Mapping[str, Any]) -> Iterable[str]:
    """`name=value` of a query: a list is the name once for each member, an object is JSON, null is left out."""
    for name, value in arguments.items():
        members = cast("list[object]", value) if isinstance(value, list) else [value]
        for member in members:
            if member is not None:
                text = (
                    json.dumps(member, ensure_ascii=False) if isinstance(member, dict | list) else _text(name, member)
                )
                yield f"{quote(name, safe='')}={quote(text, safe='')}"
