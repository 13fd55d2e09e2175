"""What may be connected to: all public addresses, and of the others what the operator opens (setting EGRESS_ALLOW)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from app.tools.egress.addresses import Address, Reach, reach_of, unwrapped
from app.tools.errors import ToolSettingError
from app.tools.hosts import HostPattern, HostPatterns

_IS_ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True, slots=True)
class _Network:
    network: IPv4Network | IPv6Network
    port: int | None = None

    def has(self, address: Address, port: int) -> bool:
        return self.port in (None, port) and (address in self.network or unwrapped(address) in self.network)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the operator opens. Networks and addresses are open whatever name leads there. A name opens the private
    networks and loopback that it leads to, but nothing link-local: that takes the address itself.
    """

    networks: tuple[_Network, ...] = ()
    hosts: HostPatterns = field(default_factory=HostPatterns)

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Allowance:
        """
        Args:
            entries: each a host, `*.name`, an address or a network (CIDR); hosts and addresses also with `:port`.

        Raises:
            ToolSettingError: names the entry.
        """
        networks: list[_Network] = []
        patterns: list[HostPattern] = []
        for entry in entries:
            try:
                read = _read(entry.strip())
            except ValueError as error:
                raise ToolSettingError(f"EGRESS_ALLOW: {entry!r} cannot be used: {error}") from error
            if isinstance(read, _Network):
                networks.append(read)
            else:
                patterns.append(read)
        return cls(tuple(networks), HostPatterns(tuple(patterns)))

    def opens(self, host: str, port: int, address: Address) -> bool:
        """Whether the operator names this way: the address, or the host if the address is one that a name opens."""
        if any(network.has(address, port) for network in self.networks):
            return True
        return reach_of(address) is not Reach.SPECIAL and self.hosts.match(host, port)

    def admits(self, host: str, port: int, address: Address) -> bool:
        """Whether the address, to which `host` leads, may be connected to."""
        return reach_of(address) is Reach.PUBLIC or self.opens(host, port, address)


def _read(entry: str) -> _Network | HostPattern:
    if "/" in entry:
        return _Network(ip_network(entry))
    pattern = HostPattern.parse(entry)
    if pattern.is_any:
        raise ValueError("should be hosts, addresses or networks; 0.0.0.0/0 and ::/0 are all of them")
    if not pattern.below and _IS_ADDRESS.fullmatch(pattern.host):
        return _Network(ip_network(ip_address(pattern.host)), pattern.port)
    return pattern
