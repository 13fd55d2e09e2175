"""Gates that tools of the service wait at until a test opens them, and the record of who came: files in a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.acceptance.waiting import holds


class Gate:
    """One gate, seen from the test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._calls = folder / f"{name}.calls"
        self._ended = folder / f"{name}.ended"
        self._open = folder / f"{name}.open"

    def open(self) -> None:
        """Let everybody through, those who come later too."""
        self._open.touch()

    def calls(self) -> list[dict[str, Any]]:
        """Those who came, oldest first: run_id, tool_call_id, idempotency_key, pid."""
        return _lines(self._calls)

    def ended(self) -> list[dict[str, Any]]:
        """Those who went through."""
        return _lines(self._ended)

    async def entered(self, times: int = 1) -> list[dict[str, Any]]:
        """Wait until so many have come."""
        await holds(lambda: len(self.calls()) >= times, f"{times} calls at the gate {self.name}")
        return self.calls()

    async def left(self, times: int = 1) -> None:
        """Wait until so many have gone through."""
        await holds(lambda: len(self.ended()) >= times, f"{times} calls through the gate {self.name}")


class Gates:
    """A folder of gates; its path goes to the service as GATES_DIR."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0

    def new(self) -> Gate:
        self._made += 1
        return Gate(self.folder, f"gate{self._made}")

    def remove(self) -> None:
        """Open all of them, for tools that still wait, and clear up."""
        for calls in self.folder.glob("*.calls"):
            calls.with_suffix(".open").touch()
        shutil.rmtree(self.folder, ignore_errors=True)


def note(folder: Path, name: str, kind: str, entry: dict[str, Any]) -> None:
    """Append a line in one write, so that the lines of several processes do not mix."""
    line = json.dumps({**entry, "pid": os.getpid()}) + "\n"
    descriptor = os.open(folder / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def is_open(folder: Path, name: str) -> bool:
    return (folder / f"{name}.open").exists() or not folder.exists()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
