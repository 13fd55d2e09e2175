"""Processes that tests start through others, and what has become of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import psutil

# The program itself: a shim in its place would be a shell script that reads half of the home folder.
PYTHON = os.path.realpath(sys.executable)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)
