"""Where requests may go: addresses, what the operator opens, URLs, names, redirects."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from yarl import URL

from app.tools.egress import Allowance, CheckedResolver, Egress, Request, Target
from app.tools.egress.addresses import Reach, reach_of
from app.tools.errors import CallTimeoutError, EgressError, EgressRefusedError, ToolSettingError
from app.tools.hosts import HostPatterns

PUBLIC = ["8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "192.88.98.1"]
PUBLIC_6 = ["2606:4700::1111", "2a00:1450:4001:80b::200e", "2001:200::1"]
INTERNAL = ["10.0.0.1", "127.0.0.1", "127.255.255.254", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"]
INTERNAL_6 = ["::1", "fc00::1", "fd12:3456::1"]
SPECIAL = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
SPECIAL_6 = [
    "::",
    "::127.0.0.1",  # IPv4-compatible, deprecated
    "64:ff9b:1::7f00:1",  # NAT64 for local use
    "100::1",  # discard only
    "2001::1",  # Teredo
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",  # benchmarking
    "2001:10::1",  # ORCHID
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",  # 6to4, of 127.0.0.1
    "2002:808:808::1",  # and of a public address
    "3fff::1",
    "5f00::1",  # segment routing
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2606:4700::1111%eth0",
]


@pytest.mark.parametrize("address", PUBLIC + PUBLIC_6)
def test_public_addresses_are_public(address: str) -> None:
    assert reach_of(ip_address(address)) is Reach.PUBLIC


@pytest.mark.parametrize("address", INTERNAL + INTERNAL_6)
def test_private_networks_and_loopback_are_internal(address: str) -> None:
    assert reach_of(ip_address(address)) is Reach.INTERNAL


@pytest.mark.parametrize("address", SPECIAL + SPECIAL_6)
def test_everything_else_is_special(address: str) -> None:
    assert reach_of(ip_address(address)) is Reach.SPECIAL


@pytest.mark.parametrize("prefix", ["::ffff:", "64:ff9b::"])
@pytest.mark.parametrize(
    ("address", "reach"), [("8.8.8.8", Reach.PUBLIC), ("10.0.0.1", Reach.INTERNAL), ("169.254.169.254", Reach.SPECIAL)]
)
def test_an_address_that_carries_another_has_its_reach(prefix: str, address: str, reach: Reach) -> None:
    assert reach_of(ip_address(prefix + address)) is reach


def allowed(*entries: str) -> Allowance:
    return Allowance.parse(entries)


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "admitted"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000, "127.0.0.1", True),
        ("127.0.0.1:9000", "127.0.0.1", 9001, "127.0.0.1", False),
        ("127.0.0.1:9000", "anything.example", 9000, "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", 1, "::ffff:127.0.0.1", True),
        ("[::1]:9000", "::1", 9000, "::1", True),
        ("10.0.0.0/8", "a.example", 80, "10.1.2.3", True),
        ("10.0.0.0/8", "a.example", 80, "11.1.2.3", True),  # public
        ("10.0.0.0/8", "a.example", 80, "172.16.0.1", False),
        ("10.0.0.0/8", "a.example", 80, "64:ff9b::10.1.2.3", True),
        ("169.254.169.254", "169.254.169.254", 80, "169.254.169.254", True),
        ("internal.example", "internal.example", 80, "10.0.0.1", True),
        ("internal.example", "internal.example", 80, "127.0.0.1", True),
        ("internal.example", "internal.example", 80, "169.254.169.254", False),
        ("internal.example", "internal.example", 80, "0.0.0.0", False),
        ("internal.example", "internal.example", 80, "224.0.0.1", False),
        ("internal.example", "other.example", 80, "10.0.0.1", False),
        ("internal.example:8080", "internal.example", 80, "10.0.0.1", False),
        ("*.svc.local", "a.svc.local", 80, "10.0.0.1", True),
        ("*.svc.local", "svc.local", 80, "10.0.0.1", False),
    ],
)
def test_the_operator_opens_what_an_entry_says_and_no_more(
    entry: str, host: str, port: int, address: str, admitted: bool
) -> None:
    assert allowed(entry).admits(host, port, ip_address(address)) is admitted


@pytest.mark.parametrize("entry", ["*", "http://a.example", "10.0.0.1/8", "10.0.0.0/99", "0x7f.1", "a.example:0", ""])
def test_an_entry_that_cannot_be_read_stops_the_start(entry: str) -> None:
    with pytest.raises(ToolSettingError, match="EGRESS_ALLOW: "):
        allowed(entry)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/",
        "file:///etc/passwd",
        "//a.example/",
        "http:///x",
        "http://user@a.example/",
        "http://user:password@a.example/",
        "http://a.example:0/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://a.example./",
        "http://[fe80::1%25eth0]/",
        "http://a.example/" + "x" * 20_000,
    ],
)
def test_odd_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Target.of(URL(url))


@pytest.mark.parametrize("url", ["http://１２７.０.０.１/", "http://127。0。0。1/", "http://[::ffff:127.0.0.1]/"])
def test_an_address_in_other_letters_is_judged_as_that_address(url: str) -> None:
    address = Target.of(URL(url)).address
    assert address is not None
    assert reach_of(address) is Reach.INTERNAL


def test_a_url_is_taken_apart_once() -> None:
    target = Target.of(URL("https://Bücher.example/a?b#c"))
    assert (target.host, target.port) == ("xn--bcher-kva.example", 443)
    assert str(target.url) == "https://xn--bcher-kva.example/a?b"


def resolver(*addresses: str, opened: Sequence[str] = ()) -> CheckedResolver:
    async def lookup(host: str, port: int) -> Sequence[str]:
        return addresses

    return CheckedResolver(allowed(*opened), lookup)


async def test_a_name_gives_its_addresses_when_all_may_be_connected_to() -> None:
    assert await resolver("8.8.8.8", "2606:4700::1111", "8.8.8.8").addresses("a.example", 443) == (
        "8.8.8.8",
        "2606:4700::1111",
    )


@pytest.mark.parametrize("address", [*INTERNAL, *INTERNAL_6, *SPECIAL, *SPECIAL_6])
async def test_one_address_that_is_not_open_refuses_them_all(address: str) -> None:
    with pytest.raises(EgressRefusedError) as error:
        await resolver("8.8.8.8", address).addresses("a.example", 443)
    assert address not in str(error.value)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "a.example."])
async def test_an_odd_host_is_not_looked_up(host: str) -> None:
    with pytest.raises(EgressRefusedError):
        await resolver("8.8.8.8").addresses(host, 443)


async def test_a_name_without_addresses_is_told() -> None:
    with pytest.raises(EgressError, match=r"^the name a.example has no address$"):
        await resolver().addresses("a.example", 443)


async def test_a_lookup_that_fails_is_told_without_its_own_words() -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        raise OSError("ns1.internal refused")

    with pytest.raises(EgressError, match=r"^the name a.example cannot be resolved$"):
        await CheckedResolver(allowed(), lookup).addresses("a.example", 443)


async def test_a_lookup_that_times_out_is_a_timeout() -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        raise TimeoutError

    with pytest.raises(CallTimeoutError):
        await CheckedResolver(allowed(), lookup).addresses("a.example", 443)


def request(url: str = "https://a.example/x", method: str = "POST", hosts: HostPatterns | None = None) -> Request:
    return Request(
        method=method,
        target=Target.of(URL(url)),
        headers={"Accept": "*/*", "X-Mine": "1", "Content-Type": "application/json", "Cookie": "c"},
        secret_headers={"Authorization": "Bearer hunter2x"},
        body=b"{}",
        hosts=hosts,
    )


@pytest.mark.parametrize("location", ["/y", "y", "https://a.example/y", "https://a.example:443/y", "//a.example/y"])
def test_a_redirect_within_an_origin_keeps_the_headers(location: str) -> None:
    redirected = request().redirected(307, location)
    assert str(redirected.target.url) == "https://a.example/y"
    assert redirected.headers == request().headers
    assert redirected.secret_headers == request().secret_headers
    assert redirected.body == b"{}"


@pytest.mark.parametrize("location", ["https://b.example/", "https://a.example:8443/", "https://www.a.example/"])
def test_a_redirect_to_another_origin_takes_along_nothing_that_tells_who_asks(location: str) -> None:
    redirected = request().redirected(307, location)
    assert redirected.secret_headers == {}
    assert redirected.headers == {"Accept": "*/*", "Content-Type": "application/json"}


def test_from_http_to_https_is_another_origin() -> None:
    assert request("http://a.example/").redirected(307, "https://a.example/").secret_headers == {}


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "DELETE", "GET"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (307, "POST", "POST"),
        (308, "PATCH", "PATCH"),
        (302, "GET", "GET"),
    ],
)
def test_a_redirect_changes_the_method_as_browsers_do(status: int, method: str, becomes: str) -> None:
    redirected = request(method=method).redirected(status, "/y")
    assert redirected.method == becomes
    if becomes != method:
        assert redirected.body is None
        assert "Content-Type" not in redirected.headers


@pytest.mark.parametrize(
    "location",
    [
        "http://a.example/",  # less safe than what was asked for
        "ftp://a.example/",
        "file:///etc/passwd",
        "https://user@a.example/",
        "https://0x7f.1/",
        "https://[/",
        "javascript:alert(1)",
    ],
)
def test_a_redirect_that_leads_astray_is_refused(location: str) -> None:
    with pytest.raises(EgressRefusedError):
        request().redirected(302, location)


def test_a_redirect_leads_to_allowed_hosts_only_where_there_are_any() -> None:
    hosts = HostPatterns.parse(["a.example", "*.a.example"])
    assert request(hosts=hosts).redirected(302, "https://www.a.example/").target.host == "www.a.example"
    with pytest.raises(EgressRefusedError, match=r"b\.example, which is none of the allowed hosts"):
        request(hosts=hosts).redirected(302, "https://b.example/")


def test_a_request_shows_no_secrets_and_no_body() -> None:
    assert "hunter2x" not in repr(request())


async def test_a_client_that_connects_by_itself_gets_addresses_under_the_same_rules() -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["10.0.0.1"] if host == "inside.example" else ["93.184.216.34"]

    egress = Egress(allowed("inside.example:80"), lookup=lookup)
    assert await egress.addresses("public.example", 80) == ("93.184.216.34",)
    assert await egress.addresses("inside.example", 80, secrets_in_clear=True) == ("10.0.0.1",)
    with pytest.raises(EgressRefusedError):
        await egress.addresses("inside.example", 81)
    with pytest.raises(EgressRefusedError, match="gets no secrets without https"):
        await egress.addresses("public.example", 80, secrets_in_clear=True)
