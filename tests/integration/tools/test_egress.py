"""Requests to the outside over real sockets: where they go, what they take along, and when they are given up."""

from __future__ import annotations

import asyncio
import gzip
import os
import ssl
import time
import zlib
from typing import Any

import pytest
import trustme
from yarl import URL

from app.tools.egress import Answer, Bounds, Egress, Request, Target
from app.tools.errors import CallTimeoutError, EgressError, EgressRefusedError
from tests.integration.tools.conftest import MakeEgress, Names, StartSite, answer


def request(url: str, method: str = "GET", **fields: Any) -> Request:
    return Request(method=method, target=Target.of(URL(url)), **fields)


async def get(egress: Egress, url: str, **fields: Any) -> Answer:
    return await egress.send(request(url, **fields))


async def test_an_answer_comes_with_its_status_type_and_body(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer('{"a": 1}', "201 Created", content_type="Application/JSON; charset=utf-8"))
    got = await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/x?y=z")
    assert got == Answer(201, b'{"a": 1}', "application/json", "utf-8")
    assert got.is_success
    assert there.received[0].path == "/x?y=z"
    assert there.received[0].headers["user-agent"] == "agent-runner"


async def test_nothing_reaches_loopback_unless_the_operator_opens_it(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer("secret"))
    client = egress(f"127.0.0.1:{there.port + 1}", "10.0.0.0/8")
    with pytest.raises(EgressRefusedError):
        await get(client, f"http://127.0.0.1:{there.port}/")
    assert there.connections == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "64:ff9b::7f00:1"])
async def test_a_name_that_leads_inside_is_refused_before_anything_is_connected(
    site: StartSite, egress: MakeEgress, names: Names, address: str
) -> None:
    there = await site(answer("secret"))
    names.lead("inside.example", address)
    with pytest.raises(EgressRefusedError):
        await get(egress(), f"http://inside.example:{there.port}/")
    names.lead("both.example", ["93.184.216.34", address])
    with pytest.raises(EgressRefusedError):
        await get(egress(), f"http://both.example:{there.port}/")
    assert there.connections == 0


async def test_a_name_that_changes_its_mind_is_connected_to_where_it_was_checked(
    site: StartSite, egress: MakeEgress, names: Names
) -> None:
    there = await site(answer("fine"))
    inside = await site(answer("secret"), host="127.0.0.2", port=there.port)
    names.lead("turning.example", "127.0.0.1", "127.0.0.2")
    client = egress("127.0.0.1")
    url = f"http://turning.example:{there.port}/"
    assert (await get(client, url)).body == b"fine"
    assert names.asked == ["turning.example"]
    # Over the kept connection: not asked again.
    assert (await get(client, url)).body == b"fine"
    assert (there.connections, names.asked) == (1, ["turning.example"])
    # Over a new one: asked, and checked.
    there.drop()
    await client.aclose()
    with pytest.raises(EgressRefusedError):
        await get(client, url)
    assert inside.connections == 0


async def test_a_kept_connection_of_one_name_is_not_used_for_another(
    site: StartSite, egress: MakeEgress, names: Names
) -> None:
    there = await site(answer("fine"))
    names.lead("one.example", "127.0.0.1")
    names.lead("other.example", "10.0.0.1")
    client = egress("one.example")
    await get(client, f"http://one.example:{there.port}/")
    with pytest.raises(EgressRefusedError):
        await get(client, f"http://other.example:{there.port}/")
    assert len(there.received) == 1


async def test_of_several_addresses_the_next_is_tried_when_one_does_not_answer(
    site: StartSite, egress: MakeEgress, names: Names
) -> None:
    there = await site(answer("fine"))
    names.lead("two.example", ["127.0.0.3", "127.0.0.1"])
    assert (await get(egress("127.0.0.0/8"), f"http://two.example:{there.port}/")).body == b"fine"


async def test_environment_proxies_are_not_used(
    site: StartSite, egress: MakeEgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await site(answer("fine"))
    proxy = await site(answer("by proxy"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    assert (await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/")).body == b"fine"
    assert proxy.connections == 0


async def test_no_cookie_is_kept(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer("fine", set_cookie="session=1; Path=/"))
    client = egress("127.0.0.1")
    for _ in range(2):
        await get(client, f"http://127.0.0.1:{there.port}/")
    assert all("cookie" not in received.headers for received in there.received)


# Redirects


async def test_redirects_are_followed_within_their_bound(site: StartSite, egress: MakeEgress) -> None:
    steps = {f"/{number}": answer(status="302 Found", location=f"/{number + 1}") for number in range(6)}
    there = await site(steps | {"/6": answer("end")})
    client = egress("127.0.0.1")
    assert (await get(client, f"http://127.0.0.1:{there.port}/1")).body == b"end"
    with pytest.raises(EgressError, match="redirects more than 5 times"):
        await get(client, f"http://127.0.0.1:{there.port}/0")


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "http://inside.example:{port}/",
        "//127.0.0.2:{port}/",
        "http://[::ffff:127.0.0.2]:{port}/",
        "http://0x7f.2:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/",
        "gopher://127.0.0.1:{port}/",
        "file:///etc/passwd",
    ],
)
async def test_a_redirect_to_a_private_address_is_refused(
    site: StartSite, egress: MakeEgress, names: Names, location: str
) -> None:
    there = await site(answer())
    inside = await site(answer("secret"), host="127.0.0.2", port=there.port)
    redirecting = await site(answer(status="302 Found", location=location.format(port=inside.port)))
    names.lead("inside.example", "127.0.0.2")
    with pytest.raises(EgressRefusedError):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{redirecting.port}/")
    assert inside.connections == 0


async def test_secrets_stay_with_the_origin_and_do_not_come_back(
    site: StartSite, egress: MakeEgress, names: Names
) -> None:
    there = await site({"/end": answer("end")})
    other = await site(answer(status="307 T", location=f"http://a.example:{there.port}/end"))
    first = await site(
        {
            "/": answer(status="307 T", location="/again"),
            "/again": answer(status="307 T", location=f"http://a.example:{other.port}/"),
        }
    )
    names.lead("a.example", "127.0.0.1")
    await get(
        egress("a.example"),
        f"http://a.example:{first.port}/",
        method="POST",
        body=b"{}",
        headers={"X-Plain": "1", "Content-Type": "application/json"},
        secret_headers={"Authorization": "Bearer hunter2x"},
    )
    assert [received.headers.get("authorization") for received in first.received] == ["Bearer hunter2x"] * 2
    for received in (*other.received, *there.received):
        assert "authorization" not in received.headers
        assert "x-plain" not in received.headers
        assert received.body == b"{}"
        assert received.headers["content-type"] == "application/json"


async def test_secrets_go_unencrypted_only_where_the_operator_names_the_way(
    site: StartSite, egress: MakeEgress, names: Names
) -> None:
    there = await site(answer("fine"))
    secret = {"Authorization": "Bearer hunter2x"}
    names.lead("public.example", "93.184.216.34")
    names.lead("internal.example", "127.0.0.1")
    with pytest.raises(EgressRefusedError, match="gets no secrets without https"):
        await get(egress("10.0.0.0/8"), "http://public.example/", secret_headers=secret)
    with pytest.raises(EgressRefusedError, match="gets no secrets without https"):
        await get(egress(), "http://93.184.216.34/", secret_headers=secret)
    await get(egress("internal.example"), f"http://internal.example:{there.port}/", secret_headers=secret)
    assert there.received[0].headers["authorization"] == "Bearer hunter2x"


# TLS


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def serving(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_certificate_is_held_against_the_name_and_not_the_address(
    site: StartSite, egress: MakeEgress, names: Names, authority: trustme.CA
) -> None:
    there = await site(answer("fine"), tls=serving(authority, "a.example"))
    names.lead("a.example", "127.0.0.1")
    names.lead("b.example", "127.0.0.1")
    client = egress("127.0.0.1", tls=trusting(authority))
    assert (await get(client, f"https://a.example:{there.port}/")).body == b"fine"
    assert there.names == ["a.example"]
    assert there.received[0].headers["host"] == f"a.example:{there.port}"
    with pytest.raises(EgressError, match="no certificate that can be trusted"):
        await get(client, f"https://b.example:{there.port}/")
    with pytest.raises(EgressError, match="no certificate that can be trusted"):
        await get(client, f"https://127.0.0.1:{there.port}/")
    assert len(there.received) == 1


async def test_an_unknown_authority_is_not_trusted(
    site: StartSite, egress: MakeEgress, names: Names, authority: trustme.CA
) -> None:
    there = await site(answer("fine"), tls=serving(authority, "a.example"))
    names.lead("a.example", "127.0.0.1")
    with pytest.raises(EgressError, match="no certificate that can be trusted"):
        await get(egress("127.0.0.1"), f"https://a.example:{there.port}/")
    assert there.received == []


async def test_a_redirect_from_https_to_http_is_refused(
    site: StartSite, egress: MakeEgress, names: Names, authority: trustme.CA
) -> None:
    plain = await site(answer("fine"))
    there = await site(
        answer(status="302 Found", location=f"http://a.example:{plain.port}/"), tls=serving(authority, "a.example")
    )
    names.lead("a.example", "127.0.0.1")
    with pytest.raises(EgressRefusedError, match="from https to http"):
        await get(egress("127.0.0.1", tls=trusting(authority)), f"https://a.example:{there.port}/")
    assert plain.connections == 0


# Sizes

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


# Times


async def test_a_body_that_trickles_in_is_given_up_when_the_time_is_over(site: StartSite, egress: MakeEgress) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    there = await site(trickle)
    started = time.monotonic()
    with pytest.raises(CallTimeoutError, match=r"took more than 0\.3 s"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=0.3, read_s=5))
    assert time.monotonic() - started < 3


async def silent(_: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def test_a_site_that_says_nothing_is_given_up(site: StartSite, egress: MakeEgress) -> None:
    there = await site(silent)
    with pytest.raises(CallTimeoutError, match=r"nothing came from 127\.0\.0\.1 for 0\.1 s"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=5, read_s=0.1))


async def test_a_connection_that_does_not_come_about_is_given_up(
    site: StartSite, egress: MakeEgress, names: Names, authority: trustme.CA
) -> None:
    there = await site(silent)  # and so says nothing of TLS either
    names.lead("a.example", "127.0.0.1")
    with pytest.raises(CallTimeoutError, match=r"no connection to a\.example within 0\.1 s"):
        await get(egress("127.0.0.1"), f"https://a.example:{there.port}/", bounds=Bounds(total_s=5, connect_s=0.1))


async def test_redirects_share_one_time(site: StartSite, egress: MakeEgress) -> None:
    async def later(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(answer(status="302 Found", location="/", connection="close"))
        await writer.drain()

    there = await site(later)
    with pytest.raises(CallTimeoutError):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=0.4))
    assert 1 <= len(there.received) <= 4


async def test_a_name_or_port_that_is_not_there_is_told(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer())
    port = there.port
    await there.stop()
    with pytest.raises(EgressError, match=r"the name nowhere\.example cannot be resolved"):
        await get(egress("127.0.0.1"), "http://nowhere.example/")
    with pytest.raises(EgressError, match="cannot be connected to"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_request_is_sent_once_even_if_the_connection_breaks(
    site: StartSite, egress: MakeEgress, method: str
) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    there = await site(hang_up)
    with pytest.raises(EgressError, match="broke the connection off"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", method=method)
    assert len(there.received) == 1


async def test_an_answer_that_breaks_off_is_no_answer(site: StartSite, egress: MakeEgress) -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()

    there = await site(half)
    with pytest.raises(EgressError, match="broke the connection off"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/")


async def test_a_closed_client_opens_anew(site: StartSite, egress: MakeEgress) -> None:
    there = await site(answer("fine"))
    client = egress("127.0.0.1")
    for _ in range(2):
        assert (await get(client, f"http://127.0.0.1:{there.port}/")).body == b"fine"
        await client.aclose()
    assert there.connections == 2
