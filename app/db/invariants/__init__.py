"""What holds in the database of a service at any moment, whatever was killed before.

Each invariant is a query that finds the rows that break it. They are promises of the product, not of one function:
tests ask for all of them after whatever they did, and `agent-runner doctor` asks for them in production.
"""

from app.db.invariants.check import MOST_RUNS, Broken, Checked, check_all, check_here
from app.db.invariants.invariant import Invariant
from app.db.invariants.promises import INVARIANTS

__all__ = ["INVARIANTS", "MOST_RUNS", "Broken", "Checked", "Invariant", "check_all", "check_here"]
