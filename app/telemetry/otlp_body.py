"""Spans as the body of an OTLP request, in binary protobuf.

https://github.com/open-telemetry/opentelemetry-proto/blob/v1.9.0/opentelemetry/proto/trace/v1/trace.proto

The package's encoder builds each message of each attribute anew, and takes longer for a span than all else that is done
for it. Here an attribute that has come before, as most have, is encoded already, and what every span has is written as
it stands on the wire; all else is left to the generated classes (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, cast

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope as PbScope
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as PbResource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as PbSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as PbStatus
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import AnyValue, Attributes

from app.telemetry.logs import redacted
from app.telemetry.span_queue import EndedSpan

_KEPT_ATTRIBUTES = 4096
_LONGEST_KEPT_CHARS = 32  # ids, which come once, have 36
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200  # SpanFlags

# Tags: the number of a field times eight, and 2 for what has a length, 1 and 5 for 64 and 32 bits.
_TRACE_ID, _SPAN_ID, _PARENT = b"\x0a\x10", b"\x12\x08", b"\x22\x08"  # fields 1, 2 and 4, with their lengths
_NAME, _ATTRIBUTE = b"\x2a", b"\x4a"  # fields 5 and 9
_KIND_TIMES_FLAGS = Struct("<BBBQBQHI")  # fields 6, 7, 8 and 16
_KEY, _VALUE, _STRING = b"\x0a", b"\x12", b"\x0a"  # of KeyValue and AnyValue
_RESOURCE, _SCOPE, _ITEM = b"\x0a", b"\x0a", b"\x12"  # of ResourceSpans and ScopeSpans


def request_body(resource: bytes, spans: Sequence[EndedSpan]) -> bytes:
    """An ExportTraceServiceRequest with these spans, without what tools must not tell.

    Args:
        resource: as `encoded_resource` writes it.
    """
    scopes: dict[str, list[bytes]] = {}
    for span in spans:
        scopes.setdefault(span.scope, []).append(_span(span))
    items = [_framed(_ITEM, _scope(scope) + b"".join(items)) for scope, items in scopes.items()]
    return _framed(_RESOURCE, resource + b"".join(items))


def encoded_resource(resource: Resource) -> bytes:
    """Who tells, as a field of ResourceSpans."""
    return _framed(_RESOURCE, PbResource(attributes=_key_values(resource.attributes)).SerializeToString())


def _scope(name: str) -> bytes:
    return _framed(_SCOPE, PbScope(name=name).SerializeToString())


def _span(span: EndedSpan) -> bytes:
    flags = span.flags | _HAS_IS_REMOTE | (_IS_REMOTE if span.remote else 0)
    parts = [_TRACE_ID, span.trace_id.to_bytes(16, "big"), _SPAN_ID, span.span_id.to_bytes(8, "big")]
    if span.parent_id:
        parts += (_PARENT, span.parent_id.to_bytes(8, "big"))
    parts += (
        _framed(_NAME, span.name.encode("utf-8", "replace")),
        # A kind's number is one more than the SDK's: 0 says that there is none.
        _KIND_TIMES_FLAGS.pack(0x30, span.kind + 1, 0x39, span.start, 0x41, span.end, 0x0185, flags),
    )
    for key, value in span.attributes.items():
        known = _short_texts.get((key, value)) if type(value) is str else None
        parts.append(known or _attribute(key, value))
    if span.events or span.links or span.state or span.status:
        parts.append(_seldom(span))  # a message goes on with what another one of its kind has
    return _framed(_ITEM, b"".join(parts))


def _seldom(span: EndedSpan) -> bytes:
    """What few spans have."""
    rest = PbSpan(trace_state=span.state)
    if span.status:
        rest.status.CopyFrom(PbStatus(code=cast("Any", span.status), message=redacted(span.said or "")))
    for event in span.events or ():
        rest.events.add(
            name=redacted(event.name), time_unix_nano=event.timestamp, attributes=_key_values(event.attributes)
        )
    for link in span.links or ():
        rest.links.add(
            trace_id=link.context.trace_id.to_bytes(16, "big"),
            span_id=link.context.span_id.to_bytes(8, "big"),
            trace_state=link.context.trace_state.to_header(),
            attributes=_key_values(link.attributes),
        )
    return rest.SerializeToString()


def _attribute(key: str, value: AnyValue) -> bytes:
    if isinstance(value, str):
        return _text_attribute(key, value)
    if isinstance(value, int):
        return _number_attribute(key, value)
    try:
        return _framed(_ATTRIBUTE, _key_value(key, value).SerializeToString())
    except (ValueError, TypeError):  # of no type that an attribute may have
        return b""


def _text_attribute(key: str, text: str) -> bytes:
    value = _framed(_STRING, redacted(text).encode("utf-8", "replace"))
    attribute = _framed(_ATTRIBUTE, _framed(_KEY, key.encode()) + _framed(_VALUE, value))
    if len(text) <= _LONGEST_KEPT_CHARS and len(_short_texts) < _KEPT_ATTRIBUTES:
        _short_texts[key, text] = attribute
    return attribute


@lru_cache(_KEPT_ATTRIBUTES, typed=True)  # since 1 and True are equal
def _number_attribute(key: str, value: int) -> bytes:
    if not -(2**63) <= value < 2**63:
        return b""
    return _framed(_ATTRIBUTE, _key_value(key, value).SerializeToString())


_short_texts: dict[tuple[str, str], bytes] = {}


def _key_values(attributes: Attributes) -> list[KeyValue]:
    return [_key_value(key, value) for key, value in (attributes or {}).items()]


def _key_value(key: str, value: AnyValue) -> KeyValue:
    # A generated class takes the arguments of those inside in place of these, which its stubs do not say.
    return KeyValue(key=key, value=cast("Any", _any_value(value)))


def _any_value(value: AnyValue) -> dict[str, Any]:
    match value:
        case str():
            return {"string_value": redacted(value)}
        case bool():
            return {"bool_value": value}
        case int():
            return {"int_value": value}
        case float():
            return {"double_value": value}
        case bytes():
            return {"bytes_value": value}
        case None:
            return {}
        case Mapping():
            values = [{"key": key, "value": _any_value(each)} for key, each in value.items()]
            return {"kvlist_value": {"values": values}}
        case _:
            return {"array_value": {"values": [_any_value(each) for each in value]}}


def _framed(tag: bytes, body: bytes) -> bytes:
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SHORT[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SHORT = [bytes((number,)) for number in range(0x80)]
