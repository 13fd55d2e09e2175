"""When a run that takes its process down is given up."""

from __future__ import annotations

from app.engine.errors import RunError

# With nothing committed in between by which the run got further: whatever it was at, it never came through it.
MAX_CRASHES = 3
# The next crash may end such a run: a replica has one of them at a time, so that none pays for another's crash.
SUSPECT_CRASHES = MAX_CRASHES - 1
# Processes that die without the run as well, as where somebody kills them all the while, speak for it, up to here.
MAX_CRASHES_AMONG_OTHERS = 6
AMONG_OTHERS_S = 60.0


def poisoned(crashes: int) -> RunError:
    """Why a run has failed that was under way in so many crashes in a row."""
    message = f"the run was under way {crashes} times in a row when its process died or hung, and was given up"
    return RunError("poisoned", message)
