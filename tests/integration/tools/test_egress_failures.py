"""When a request to the outside is given up, and what is told of one that got no whole answer."""

from __future__ import annotations

import asyncio

import pytest
import trustme

from app.tools.egress import Bounds
from app.tools.errors import CallTimeoutError, EgressError
from tests.integration.tools.conftest import MakeEgress, Names, StartSite, answer, get


async def test_a_body_that_trickles_in_is_given_up_when_the_time_is_over(site: StartSite, egress: MakeEgress) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    there = await site(trickle)
    with pytest.raises(CallTimeoutError, match=r"took more than 0\.3 s"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=0.3, read_s=5))


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
    """Guard: the timeout is around all of `Egress.send`; with one for each redirect there are too many of them."""

    async def later(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(answer(status="302 Found", location="/", connection="close"))
        await writer.drain()

    there = await site(later)
    with pytest.raises(CallTimeoutError, match=r"took more than 0\.4 s"):
        await get(egress("127.0.0.1"), f"http://127.0.0.1:{there.port}/", bounds=Bounds(total_s=0.4))


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
