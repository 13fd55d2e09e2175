"""When a run that takes its process down is given up."""

from __future__ import annotations

from app.engine.errors import RunError

MAX_CRASHES = 3
# The next crash would end such a run: a replica has one of them at a time, so that none pays for another's crash.
SUSPECT_CRASHES = MAX_CRASHES - 1


def poisoned() -> RunError:
    """Why a run has failed that was under way in `MAX_CRASHES` crashes in a row."""
    message = f"the run was under way in {MAX_CRASHES} crashes of its process in a row and was given up"
    return RunError("poisoned", message)
