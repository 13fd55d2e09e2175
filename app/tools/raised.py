"""What a handler raised, as a value."""

from __future__ import annotations

import traceback
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
        name = type(self.error).__name__
        message = " ".join(text_of(self.error)[:_MAX_CHARS].split())
        return f"{name}: {message}" if message else name

    @property
    def frames(self) -> str:
        """Where it was raised, the innermost frames, without the message.

        For the log only. A full traceback repeats messages and values of any size, and rendering it takes the
        event loop's time.
        """
        return "".join(traceback.format_tb(self.error.__traceback__, limit=-_MAX_FRAMES))
