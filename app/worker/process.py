"""What a replica's process can be known by, and whether another one is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from app.db.heartbeats import Process

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")
_GONE = frozenset("ZX")  # zombie, dead: it does nothing any more


def this_process() -> Process:
    """The process that asks. Outside of Linux neither its machine nor its start is known."""
    pid = os.getpid()
    stat = _stat(pid)
    try:
        machine = f"{_BOOT.read_text().strip()} {_PIDS.readlink()}"
    except OSError:
        machine = None
    return Process(socket.gethostname(), pid, machine, None if stat is None else stat[1])


def is_gone(process: Process) -> bool:
    """Whether a process of this machine has certainly ended; another one may have its number by now."""
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is there, and somebody else's
        pass
    stat = _stat(process.pid)
    if stat is None:
        return False
    state, start = stat
    return state in _GONE or (process.start is not None and start != process.start)


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process, as proc(5) has them; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # The name of the program, in parentheses, may hold anything; behind it stand the fields from the third on.
        fields = text.rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
