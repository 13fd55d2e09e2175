"""What is read of an answer from the outside, and what is not: unpacked bodies, and the bounds of all sizes."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib

import pytest

from app.tools.egress import Bounds
from app.tools.errors import EgressError
from tests.integration.tools.conftest import MakeEgress, StartSite, answer, get

BOUND = Bounds(body_bytes=100_000)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_packed_bodies_are_unpacked(site: StartSite, egress: MakeEgress, encoding: str) -> None:
    body = os.urandom(40_000) + b"x" * 50_000
    there = await site(answer(PACKED[encoding](body), content_encoding=encoding))
    assert (await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=BOUND)).body == body


@pytest.mark.parametrize("encoding", PACKED)
async def test_a_body_is_given_up_at_its_bound_after_unpacking(
    site: StartSite, egress: MakeEgress, encoding: str
) -> None:
    bomb = PACKED[encoding](b"x" * (100_001 if encoding == "identity" else 200_000_000))
    there = await site(answer(bomb, content_encoding=encoding))
    with pytest.raises(EgressError, match="larger than 100000 bytes"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=BOUND)


async def test_a_packed_body_that_unpacks_to_nothing_ends_at_the_bound_too(site: StartSite, egress: MakeEgress) -> None:
    async def empty_blocks(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n")
        while True:
            writer.write(b"\x00\x00\x00\xff\xff" * 10_000)
            await writer.drain()

    there = await site(empty_blocks)
    with pytest.raises(EgressError, match="larger than 100000 bytes"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=BOUND)


@pytest.mark.parametrize(
    ("body", "encoding", "told"),
    [
        (b"no gzip", "gzip", "packed wrongly"),
        (gzip.compress(os.urandom(1000))[:-10], "gzip", "breaks off"),
        (b"x", "br", "'br', which was not asked for"),
        (gzip.compress(gzip.compress(b"x")), "gzip, gzip", "not asked for"),
    ],
    ids=["no gzip", "cut off", "brotli", "twice"],
)
async def test_a_body_that_cannot_be_unpacked_is_told(
    site: StartSite, egress: MakeEgress, body: bytes, encoding: str, told: str
) -> None:
    there = await site(answer(body, content_encoding=encoding))
    with pytest.raises(EgressError, match=told):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/")


async def test_the_body_of_an_error_is_cut(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer(gzip.compress(b"x" * 10_000_000), "500 Oh", content_encoding="gzip"))
    got = await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/")
    assert (got.status, len(got.body), got.is_whole) == (500, 64 * 1024, False)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 " + b"O" * 100_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
)
async def test_huge_headers_and_other_protocols_are_no_answers(
    site: StartSite, egress: MakeEgress, head: bytes
) -> None:
    there = await site(head)
    with pytest.raises(EgressError):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=5))


async def test_headers_without_end_are_given_up(site: StartSite, egress: MakeEgress) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 4000 + b"\r\n")
            await writer.drain()

    there = await site(endless)
    with pytest.raises(EgressError):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=20))


async def test_a_request_that_is_too_large_is_not_sent(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer())
    with pytest.raises(EgressError, match="request's body is larger"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", method="POST", body=b"x" * 1_100_000)
    assert there.connections == 0
