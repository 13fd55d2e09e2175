"""The program as a shell sees it: exit codes and what it says when it cannot go on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("agent-runner")


@pytest.fixture
def folder() -> Generator[Path]:
    made = Path(tempfile.mkdtemp(prefix="cli-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def agent_runner(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **settings}
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def taken_port() -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


@pytest.fixture
def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_a_bad_setting_stops_the_start_with_one_line_and_code_2(folder: Path) -> None:
    ended = agent_runner(folder, "serve", PORT="abc")
    assert ended.returncode == 2
    assert ended.stderr == "agent-runner: PORT: 'abc' cannot be used: should be a whole number\n"


def test_a_bad_argument_is_told_like_the_setting_that_it_overrides(folder: Path) -> None:
    ended = agent_runner(folder, "serve", "--workers", "0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("agent-runner: WORKERS: '0' cannot be used")


def test_an_unreachable_database_stops_the_start_with_one_line(folder: Path, free_port: str) -> None:
    url = f"postgresql://user:secret@127.0.0.1:{free_port}/name"
    ended = agent_runner(folder, "serve", DATABASE_URL=url, PORT="0")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"DATABASE_URL, 127.0.0.1:{free_port}/name, cannot be used" in ended.stderr
    assert "secret" not in ended.stderr


def test_a_port_in_use_is_told_before_a_database_is_started(folder: Path, taken_port: str) -> None:
    ended = agent_runner(folder, "serve", PORT=taken_port)
    assert ended.returncode == 1
    assert ended.stderr == (f"agent-runner: cannot listen on 127.0.0.1 port {taken_port}: Address already in use\n")
    assert list(folder.iterdir()) == []


def test_migrate_goes_up_and_down_in_an_embedded_database_and_stops_it(folder: Path) -> None:
    for arguments, told in (([], "head"), (["--down", "base"], "base"), (["--revision", "0001"], "0001")):
        ended = agent_runner(folder, "migrate", *arguments, LOG_LEVEL="warning", DATA_DIR="data")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"The database is at {told}.\n"
        assert not (folder / "data" / "postgres" / "postmaster.pid").exists()


def test_an_unknown_revision_is_refused_with_one_line(folder: Path) -> None:
    ended = agent_runner(folder, "migrate", "--revision", "nowhere", LOG_LEVEL="warning")
    assert ended.returncode == 1
    assert ended.stderr.startswith("agent-runner: upgrade to nowhere failed: ")
    assert ended.stderr.count("\n") == 1
