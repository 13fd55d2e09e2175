"""How a process is told from another one that has its number."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from app.worker.process import is_gone, this_process


def test_this_process_is_not_gone() -> None:
    assert not is_gone(this_process())


def test_a_process_of_somebody_else_is_not_gone() -> None:
    assert not is_gone(replace(this_process(), pid=1, start=None))


def test_a_process_that_has_ended_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert is_gone(replace(this_process(), pid=child.pid, start=None))


def test_a_process_with_the_number_of_an_earlier_one_is_not_that_one() -> None:
    """Seen to fail without the comparison of starts."""
    process = this_process()
    assert process.start is not None
    assert is_gone(replace(process, start=process.start + 1))


def test_a_process_may_have_any_name() -> None:
    """The name stands before the start, in the same line. Seen to fail where the line is split at every space."""
    child = subprocess.Popen(
        [sys.executable, "-c", "open('/proc/self/comm', 'w').write(') Z 1 ('); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert not is_gone(replace(this_process(), pid=child.pid, start=None))
    child.communicate(b"\n")


def test_this_process_is_known_by_its_number() -> None:
    assert this_process().pid == os.getpid()
