"""What a command answers when it cannot do what it was asked for."""

from __future__ import annotations


class CannotGoOn(Exception):
    """What was asked for cannot be done; the text is for a person, `exit_code` for the shell."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
