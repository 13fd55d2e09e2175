"""What a pool of connections is doing at a moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolUse:
    """
    Args:
        pool: its name in metrics.
        used: connections that are in use.
        idle: connections that are open and wait for use.
        most: connections that it may open.
        timeouts: how often none was free in time, so far.
        shortage: what those who wait are told; None unless somebody waited in vain since a connection last did its
            work, and all are in use now.
    """

    pool: str
    used: int
    idle: int
    most: int
    timeouts: int
    shortage: str | None

    @property
    def exhausted(self) -> bool:
        """Whether all connections that there may be are in use."""
        return self.used >= self.most
