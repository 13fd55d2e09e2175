"""Effort: a bound on work that others' data decides the size of."""

from __future__ import annotations


class TooMuchEffort(Exception):
    """The work would take more than it may."""


class TooDeep(TooMuchEffort):
    """A value is nested deeper than is looked at."""


class Effort:
    """What is left of a bound.

    Args:
        limit: how much may be spent in all; one is about one JSON value looked at, some microseconds at most.
    """

    __slots__ = ("left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit

    def spend(self, amount: int) -> None:
        """Take `amount`, before the work that it stands for.

        Raises:
            TooMuchEffort: less than that is left; it was not taken.
        """
        if amount > self.left:
            raise TooMuchEffort(f"this would take more than {self.limit} steps")
        self.left -= amount
