"""What a `Runner` raises of its own.

RunnerError
├── InvalidArgument   what it was given cannot be used; also a ValueError
└── RunAbandoned      a run stands still, and nobody in this process will go on with it
"""

from __future__ import annotations

from collections.abc import Sequence


class RunnerError(Exception):
    """Root of what this package raises."""


class InvalidArgument(RunnerError, ValueError):
    """An agent, a message or an option that cannot be used; nothing was executed.

    Args:
        problem: what is wrong and what to do instead.
        loc: the path of the field, such as `("tools", 0)`; the text begins with it.
        agent: the name of the agent whose field it is; None if it is none's.
    """

    def __init__(self, problem: str, loc: Sequence[str | int], agent: str | None = None) -> None:
        self.loc = tuple(loc)
        self.agent = agent
        of_agent = "" if agent is None else f"agent {agent!r}: "
        super().__init__(f"{of_agent}{'.'.join(map(str, self.loc))}: {problem}")


class RunAbandoned(RunnerError):
    """A run has no end, and its runner does not go on with it; the text says why."""
