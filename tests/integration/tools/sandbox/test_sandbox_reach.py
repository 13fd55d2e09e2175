"""What a confined command cannot reach although no file of it is opened: other processes, modes, memory that stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.tools.sandbox.command import run_command
from app.tools.sandbox.confinement import missing
from app.tools.sandbox.profile import SandboxProfile
from tests.processes import PYTHON

pytestmark = pytest.mark.skipif(
    missing(SandboxProfile()) is not None, reason=f"commands are refused here: {missing(SandboxProfile())}"
)

Profile = Callable[..., SandboxProfile]
REFUSED = "1 Operation not permitted"


@pytest.fixture
def victim() -> Iterator[psutil.Process]:
    """A process of the same user, beside the sandbox."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield psutil.Process(process.pid)
    process.communicate(b"\n")


async def attempt(profile: SandboxProfile, deed: str) -> str:
    """What a line of Python in a sandboxed command comes to."""
    script = (
        f"import ctypes, os, resource\ntry:\n    print('did', {deed})\nexcept OSError as e: print(e.errno, e.strerror)"
    )
    answer = await run_command(profile, [PYTHON, "-I", "-c", script], None)
    return str(answer["output"]).strip()


async def test_limits_of_other_processes(profile: Profile, victim: psutil.Process) -> None:
    deed = f"resource.prlimit({victim.pid}, resource.RLIMIT_CPU, (1, 1))"
    assert await attempt(profile(), deed) == REFUSED
    assert await attempt(profile(), "len(resource.getrlimit(resource.RLIMIT_NOFILE))") == "did 2"
    assert victim.is_running()


@pytest.mark.parametrize(
    "deed",
    [
        "os.chmod({path!r}, 0o666)",
        "os.chown({path!r}, -1, -1)",
        "os.utime({path!r}, (1, 1))",
        "os.setxattr({path!r}, 'user.mark', b'x')",
        "os.removexattr({path!r}, 'user.mark')",
    ],
)
async def test_modes_owners_times_and_attributes_of_files_outside(profile: Profile, tmp_path: Path, deed: str) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    outside.chmod(0o600)
    before = outside.stat()
    assert await attempt(profile(), deed.format(path=str(outside))) == REFUSED
    after = outside.stat()
    assert (after.st_mode, after.st_mtime, after.st_uid) == (before.st_mode, before.st_mtime, before.st_uid)


async def test_the_identity_of_somebody_else(profile: Profile, work: Path) -> None:
    (work / "program").write_text("#!/bin/sh\n")
    deed = "os.fchmod(os.open('program', os.O_RDWR), 0o4755)"
    assert await attempt(profile(), deed) == REFUSED
    assert os.stat(work / "program").st_mode & 0o6000 == 0
    assert await attempt(profile(), "os.fchmod(os.open('program', os.O_RDWR), 0o640)") == "did None"


async def test_memory_that_outlives_it_and_programs_made_of_memory(profile: Profile) -> None:
    assert await attempt(profile(), "os.memfd_create('x')") == REFUSED
    shared = "ctypes.CDLL(None, use_errno=True).shmget(0, 4096, 0o1600)"
    assert await attempt(profile(), shared) == "did -1"
