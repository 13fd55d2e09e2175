"""Which IP addresses are anybody's, which are the operator's own, and which are for no connection at all.

The tables are IANA's special-purpose registries (RFC 6890, as of 2024), written out: `ipaddress.is_global` differs
between versions of Python, and says yes to multicast, 6to4 and NAT64.
https://www.iana.org/assignments/iana-ipv4-special-registry, .../iana-ipv6-special-registry
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address


class Reach(Enum):
    """Whose an address is; the value says it to people."""

    PUBLIC = "public"
    INTERNAL = "internal"  # loopback and private networks
    SPECIAL = "reserved, link-local or multicast"


_INTERNAL_4 = [
    IPv4Network(text)
    for text in (
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # shared by carriers (CGNAT), RFC 6598
        "127.0.0.0/8",  # loopback
        "172.16.0.0/12",
        "192.168.0.0/16",
    )
]
_SPECIAL_4 = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches this machine
        "169.254.0.0/16",  # link-local, where clouds keep their metadata
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_INTERNAL_6 = [IPv6Network("::1/128"), IPv6Network("fc00::/7")]  # loopback, unique local
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # nothing else is assigned to anybody
_SPECIAL_6 = [
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries any IPv4 address
        "3fff::/20",  # documentation
    )
]
_CARRIES_IPV4 = [
    IPv6Network("::ffff:0:0/96"),  # mapped, RFC 4291
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052; of the others, 64:ff9b:1::/48 is for local use
]


def reach_of(address: Address) -> Reach:
    """An IPv6 address that stands for an IPv4 address has that one's reach."""
    address = unwrapped(address)
    if isinstance(address, IPv4Address):
        internal, special = _INTERNAL_4, _SPECIAL_4
    else:
        internal, special = _INTERNAL_6, _SPECIAL_6
        if address.scope_id is not None:
            return Reach.SPECIAL
    if any(address in network for network in internal):
        return Reach.INTERNAL
    if any(address in network for network in special):
        return Reach.SPECIAL
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return Reach.SPECIAL
    return Reach.PUBLIC


def unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for; any other address as it is."""
    if isinstance(address, IPv6Address) and any(address in network for network in _CARRIES_IPV4):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
