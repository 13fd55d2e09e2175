"""Requests that nobody should send: bodies, ids, cursors and headers that do not fit, and bytes that are no HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from random import Random
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

Path: TypeAlias = tuple[str | int, ...]

_KILOBYTE = 1024
_PIECE = b"x" * 65536


def noise(dice: Random, length: int) -> str:
    """Text that does not compress."""
    return base64.b64encode(dice.randbytes(length)).decode()[:length]


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def values(dice: Random) -> list[Any]:
    """Values that are wrong nearly everywhere."""
    return [
        None, True, 0, -1, 0.5, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, "", " ", "a\0b", "\ud800", "x\udfffy",
        "\U0010ffff", "../../etc/passwd", "'; DROP TABLE runs; --", "{{ a.b }}", "${HOME}", "NaN", "9999-99-99",
        "0000-00-00T00:00:00Z", "9999-12-31T23:59:59.999999999-14:00", noise(dice, 8 * _KILOBYTE), [], {}, [None],
        [[]], ["x"] * 1000, {"": ""}, {"a\0b": 1}, {"\ud800": 1},
        {noise(dice, 8 * _KILOBYTE): noise(dice, 8 * _KILOBYTE)},
        {"$ref": "#"}, _nested(99), _nested(900), {str(number): number for number in range(1000)},
    ]  # fmt: skip


def segments(dice: Random) -> list[str]:
    """Ids, cursors and the like that are none of ours, as they stand in a URL."""
    uuids = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
    texts = ["0", "-1", "1e5", "null", "{}", "\u0663", "9" * 18, "9" * 400, ".", "a b", "\u202e", "\U0001f600", "a;b"]
    raw = ["%00", "%ED%A0%80", "%FF%FE", "..%2F..%2Fetc", "%25%30%30", "a%0D%0Ab"]
    forged = ["019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d5", "019aa3f05b6e7c319d0c2f4b8a6e1d57"]
    forged += [f"{{{uuids[0]}}}", f"urn:uuid:{uuids[0]}", base64.urlsafe_b64encode(dice.randbytes(40)).decode()]
    return [*uuids, *raw, *(quote(text, safe="") for text in (*texts, *forged, noise(dice, 8 * _KILOBYTE)))]


def mutated(dice: Random, body: Any, values: Sequence[Any]) -> Any:
    """The body with one to three of its values replaced, left out or joined by others."""
    for _ in range(dice.randint(1, 3)):
        at = dice.choice(list(places(body)))
        new = dice.choice(values)
        match dice.random():
            case chance if chance < 0.1 and isinstance(found := _found(body, at), dict):
                body = replaced(body, at, {**found, dice.choice(("extra", "a\0b", noise(dice, 300))): new})
            case chance if chance < 0.2 and isinstance(found := _found(body, at), dict) and found:
                left_out = dice.choice(list(found))
                body = replaced(body, at, {key: value for key, value in found.items() if key != left_out})
            case _:
                body = replaced(body, at, new)
    return body


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """Where a JSON value has a value, itself included."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key)) if len(at) < 8 else ()


def _found(value: Any, at: Path) -> Any:
    for key in at:
        value = value[key]
    return value


def replaced(value: Any, at: Path, new: Any) -> Any:
    """The JSON value with another one at that place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], new)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return copy


def bodies(dice: Random) -> list[bytes]:
    """Bodies of up to a megabyte that are no JSON, or that say more than can be kept."""
    most = 1000 * _KILOBYTE
    return [
        b"\0", b"{", b"\xff\xfe{}", b'"\xed\xa0\x80"', b'{"agent": NaN}', b'{"a": 1e999}', b'{"input": "\\ud800"}',
        b'{"input": "\\u0000"}', b"[" * most, b"[" * 1000 + b"]" * 1000, b'{"a":' * 100_000, b"9" * most,
        b'{"context": {"n": ' + b"9" * 100_000 + b"}}", b'{"a": "' + b"\\u0000" * 100_000 + b'"}',
        b"[" + b"{}," * 200_000 + b"{}]", b'{"input": "' + noise(dice, most).encode() + b'"}', dice.randbytes(10_000),
    ]  # fmt: skip


def no_http(dice: Random) -> list[bytes]:
    """What is not even a request."""
    post = b"POST /runs HTTP/1.1\r\nHost: a\r\n"
    return [
        b"\r\n\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", dice.randbytes(500) + b"\r\n\r\n",
        b"GET /runs\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /healthz HTTP/1.1\r\nX: a\0b\r\n\r\n",
        post + b"Content-Length: -1\r\n\r\n", post + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nfff\r\n\r\n",
        post + b"Idempotency-Key: " + b"\xff" * 8192 + b"\r\nContent-Length: 2\r\n\r\n{}",
    ]  # fmt: skip


def headers(dice: Random) -> dict[str, bytes]:
    """A header of a request that is too long, or is not what it should be."""
    odd = [b"", b"\xff\xfe", noise(dice, 8 * _KILOBYTE).encode(), b"-1", b"1e5", b"9" * 400, b"a" * 256, b"{}"]
    names = ("Idempotency-Key", "Last-Event-ID", "X-Request-Id", "Content-Type", "Accept", "Traceparent", "Range")
    return {dice.choice(names): dice.choice(odd)}


async def told(url: str, request: bytes, more: AsyncIterator[bytes] | None = None, *, within_s: float = 30.0) -> bytes:
    """Send bytes, and then more of them; read what is answered meanwhile, until the other side has no more to say.

    Returns:
        the answer; empty if the connection was closed without one, or none came in time.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)

    async def send() -> None:
        writer.write(request)
        await writer.drain()
        if more is not None:
            async for piece in more:
                writer.write(piece)
                await writer.drain()

    sending = asyncio.create_task(send())
    answer = b""
    try:
        async with asyncio.timeout(within_s):
            while piece := await reader.read(65536):
                answer += piece
                if _is_whole(answer):
                    break
    except (TimeoutError, ConnectionError):
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()
    return answer


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0])


def status_of(answer: bytes) -> int:
    """The status of an answer as it came."""
    return int(answer.split(b" ", 2)[1])


def problem_of(answer: bytes) -> Any:
    """The JSON body of an answer as it came."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def many_headers(megabytes: int) -> AsyncIterator[bytes]:
    """Headers of so many megabytes, in pieces, and no end of them."""
    for number in range(megabytes * 16):
        yield b"".join(b"X-%d-%d: abcdefgh\r\n" % (number, place) for place in range(3000))


async def large_body(megabytes: int, *, chunked: bool) -> AsyncIterator[bytes]:
    """A body of so many megabytes, in pieces."""
    for _ in range(megabytes * 16):
        yield b"%x\r\n%s\r\n" % (len(_PIECE), _PIECE) if chunked else _PIECE
    if chunked:
        yield b"0\r\n\r\n"
