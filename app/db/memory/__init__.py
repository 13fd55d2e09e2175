"""The store without a database: for the in-process `Runner` and for tests.

It keeps every promise that the Postgres store keeps, but for the one that needs a disk. It belongs to one
event loop: no method awaits between reading and writing, so each is a transaction of its own.
"""

from app.db.memory.memories import InMemoryRows
from app.db.memory.store import MemoryStore

__all__ = ["InMemoryRows", "MemoryStore"]
