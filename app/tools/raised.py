"""What a handler raised, as a value."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from app.tools.output import text_of

_MAX_CHARS = 2_000
_MAX_FRAMES = 20


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception on its way to a result; a future cannot carry KeyboardInterrupt or StopIteration."""

    error: BaseException

    @property
    def summary(self) -> str:
        """`TypeName: message` on one line, bounded; for the model and for the log."""
        return self.summarised(str)

    def summarised(self, redact: Callable[[str], str]) -> str:
        """The same, with the message changed by `redact` before anything is cut."""
        name = type(self.error).__name__
        message = self.message(redact)
        return f"{name}: {message}" if message else name

    def message(self, redact: Callable[[str], str]) -> str:
        """The exception's text alone; empty if it has none."""
        return " ".join(redact(text_of(self.error))[:_MAX_CHARS].split())

    @property
    def frames(self) -> str:
        """Where it was raised, the innermost frames, without the message.

        For the log only. A full traceback repeats messages and values of any size, and rendering it takes the
        event loop's time.
        """
        return "".join(traceback.format_tb(self.error.__traceback__, limit=-_MAX_FRAMES))
