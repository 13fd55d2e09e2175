"""Names to addresses, all of which may be connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from app.telemetry.logs import get_logger
from app.tools.egress.addresses import Address, reach_of
from app.tools.egress.allowance import Allowance
from app.tools.errors import CallTimeoutError, EgressError, EgressRefusedError
from app.tools.hosts import canonical_host

_LOOKUP_S = 10.0
_MAX_ADDRESSES = 16

_log = get_logger(__name__)

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host and port, by whatever knows them; raises OSError where there are none."""


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """A `Lookup` that asks this machine: its hosts file, its name servers, in its order of preference (RFC 6724)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


class CheckedResolver(AbstractResolver):
    """Looks names up and refuses those that lead where nothing may go. Remembers nothing.

    Args:
        only_opened: admit only what the operator names, and no public address besides.
    """

    def __init__(self, allowance: Allowance, lookup: Lookup, *, only_opened: bool = False) -> None:
        self._admits = allowance.opens if only_opened else allowance.admits
        self._only_opened = only_opened
        self._lookup = lookup

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of a host, which is a name or an address itself; 1 to 16.

        Raises:
            EgressRefusedError: one of them may not be connected to; so none is.
            EgressError: there are none.
            CallTimeoutError: it took more than 10 seconds.
        """
        try:
            host = canonical_host(host)
        except ValueError as error:
            raise EgressRefusedError(f"{host!r} {error}") from error
        try:
            async with asyncio.timeout(_LOOKUP_S):
                texts = await self._lookup(host, port)
        except TimeoutError as error:
            raise CallTimeoutError(f"the name {host} was not resolved within {_LOOKUP_S:g} s") from error
        except (OSError, UnicodeError) as error:
            raise EgressError(f"the name {host} cannot be resolved") from error
        found = [ip_address(text) for text in dict.fromkeys(texts)]
        if not found:
            raise EgressError(f"the name {host} has no address")
        for address in found:
            self.check(host, port, address)
        return tuple(str(address) for address in found[:_MAX_ADDRESSES])

    def check(self, host: str, port: int, address: Address) -> None:
        """Raises: EgressRefusedError."""
        if not self._admits(host, port, address):
            reach = reach_of(address).value
            _log.warning("egress_refused", host=host, port=port, address=str(address), reach=reach)
            if self._only_opened:
                raise EgressRefusedError(f"{host} gets no secrets without https, unless the operator opens it to tools")
            raise EgressRefusedError(f"{host}, port {port}, is not open to tools: its address is {reach}")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`; raises as `addresses` does."""
        results: list[ResolveResult] = []
        for address in await self.addresses(host, port):
            own_family = socket.AF_INET6 if ":" in address else socket.AF_INET
            result = ResolveResult(
                hostname=host, host=address, port=port, family=own_family, proto=0, flags=socket.AI_NUMERICHOST
            )
            results.append(result)
        return results

    async def close(self) -> None:
        """See `AbstractResolver.close`."""
