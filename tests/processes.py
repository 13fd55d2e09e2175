"""Processes that tests start through others, and what has become of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress

import psutil

# The program itself: a shim in its place would be a shell script that reads half of the home folder.
PYTHON = os.path.realpath(sys.executable)


def children_with(word: str, pid: int | None = None) -> list[psutil.Process]:
    """The living children of this process, or of another, that have a word in their command line.

    Other tests of this process may have left children of theirs: a Postgres, or one that is dead and not reaped yet.
    """
    found: list[psutil.Process] = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # which a zombie is as well
            if word in " ".join(child.cmdline()):
                found.append(child)
    return found


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)
