"""All invariants, in the order in which what is broken is told."""

from __future__ import annotations

from app.db.invariants.calls import CALLS
from app.db.invariants.families import FAMILIES
from app.db.invariants.invariant import Invariant
from app.db.invariants.logs import LOGS
from app.db.invariants.statuses import STATUSES
from app.db.invariants.threads import THREADS

INVARIANTS: tuple[Invariant, ...] = (*STATUSES, *THREADS, *LOGS, *CALLS, *FAMILIES)
