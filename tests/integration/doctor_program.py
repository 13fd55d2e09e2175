"""`agent-runner doctor` as a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.acceptance.service import PROGRAM


def doctor(*arguments: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the program, away from any `.env`; whatever it finds, it shows no traceback."""
    environment = {"PATH": os.environ["PATH"], "LOG_LEVEL": "warning", **settings}
    ended = subprocess.run(
        [PROGRAM, "doctor", *arguments],
        cwd=folder or "/tmp",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in ended.stderr + ended.stdout
    return ended
