"""Where requests to the outside lead, by names, redirects and certificates, and what they take along. Real sockets."""

from __future__ import annotations

import ssl

import pytest
import trustme

from app.tools.egress import Answer
from app.tools.errors import EgressError, EgressRefusedError
from tests.integration.tools.conftest import MakeEgress, Names, StartSite, answer, get


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
