"""What holds in the database of a service at any moment."""

from tests.acceptance.invariants import check_invariants

__all__ = ["check_invariants"]
