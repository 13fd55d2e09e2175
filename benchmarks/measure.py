"""What processes cost, seen from outside."""

from __future__ import annotations

import asyncio
from types import TracebackType

import psutil

_SAMPLE_EVERY_S = 0.1


class ProcessTree:
    """A process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        """Those that live now.

        Raises:
            psutil.NoSuchProcess: the root has ended.
        """
        return [self._root, *self._root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of CPU that the tree has used so far, in user and kernel mode.

        A process's own times hold what it used itself, its `children` times what those used that have ended; so the
        sum over all that live counts everything once. Linux counts in steps of 10 ms.

        Raises:
            psutil.NoSuchProcess: the root has ended.
        """
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                if process == self._root:
                    raise
                continue  # ended just now; what it used is in its parent's times
            total += times.user + times.system + times.children_user + times.children_system
        return total


def own_cpu_s() -> float:
    """Seconds of CPU of this process itself, without its children."""
    times = psutil.Process().cpu_times()
    return times.user + times.system


class PeakMemory:
    """The most resident memory that a tree holds while this is entered, looked at ten times a second."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._task: asyncio.Task[None] | None = None
        self.peak_bytes = 0

    async def __aenter__(self) -> PeakMemory:
        # The list of processes is made once: looking for them costs far more than asking them.
        processes = self._tree.processes()
        self._look(processes)
        self._task = asyncio.create_task(self._watch(processes))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self, processes: list[psutil.Process]) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_EVERY_S)
            self._look(processes)

    def _look(self, processes: list[psutil.Process]) -> None:
        held = 0
        for process in processes:
            try:
                held += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, held)
