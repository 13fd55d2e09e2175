"""What the tests of commands share: a profile, and a look at what stays behind."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.tools.sandbox.profile import SandboxProfile
from tests.processes import PYTHON

Profile = Callable[..., SandboxProfile]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def profile(work: Path) -> Profile:
    def make(**changes: Any) -> SandboxProfile:
        return SandboxProfile.model_validate(
            {
                "commands": ["sh", "cat", "ls", PYTHON],
                "paths": {"write": [str(work)], "read": [sys.base_prefix]},
                "timeout_s": 20,
                **changes,
            }
        )

    return make


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no folder of a command's outlives it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    _, alive = psutil.wait_procs(
        [child for child in psutil.Process().children(recursive=True) if child.pid not in before], timeout=5
    )
    assert alive == []
    assert os.listdir(scratch) == []
