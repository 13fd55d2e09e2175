"""PgBouncer in transaction mode in front of the tests' Postgres: Debian's own, installed or fetched."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from tests.conftest import database_of

POOL_SIZE = 4
_PORT = 6432  # names the socket; nothing listens on TCP
_FETCH_S = 60.0
_START_S = 30.0
_CONFIG = """\
[databases]
* = host={server} port=5432 user=postgres

[pgbouncer]
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 500
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
unix_socket_mode = 0777
auth_type = any
query_wait_timeout = 60
"""


@dataclass(frozen=True, slots=True)
class Program:
    """Where the program is, and where its libraries are if they are not the system's."""

    path: Path
    libraries: Path | None = None

    def environment(self) -> dict[str, str]:
        return {} if self.libraries is None else {"LD_LIBRARY_PATH": str(self.libraries)}

    def runs(self) -> bool:
        asked = subprocess.run([self.path, "--version"], env=self.environment(), capture_output=True, check=False)
        return asked.returncode == 0


@cache
def find_program() -> Program | None:
    """The installed program, or Debian's package of it unpacked into a temporary folder; None if neither can be had.

    Nobody has to be root for it.
    """
    installed = shutil.which("pgbouncer", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if installed is not None:
        return Program(Path(installed))
    try:
        return _fetched(Path(tempfile.gettempdir()) / f"agent-runner-pgbouncer-{os.geteuid()}")
    except (OSError, subprocess.SubprocessError):
        return None


def _fetched(folder: Path) -> Program | None:
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        return None  # it is somebody else's, and so would the program be
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the processes that test at once, one fetches
        if (program := _unpacked(folder)) is None:
            depends = _run(folder, ["apt-cache", "depends", "pgbouncer"])
            libraries = re.findall(r"Depends: (lib(?:event|c-?ares)[\w.+-]*)", depends)
            _run(folder, ["apt-get", "-o", "Acquire::Retries=1", "download", "pgbouncer", *libraries])
            for package in folder.glob("*.deb"):
                _run(folder, ["dpkg", "-x", str(package), str(folder)])
            program = _unpacked(folder)
    return program


def _unpacked(folder: Path) -> Program | None:
    path = folder / "usr/sbin/pgbouncer"
    libraries = next(folder.glob("usr/lib/*/libevent*.so*"), None)
    program = Program(path, libraries.parent if libraries else None)
    return program if path.exists() and program.runs() else None


def _run(folder: Path, command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=True)
    return done.stdout


class PgBouncer:
    """A running PgBouncer. It has the account of the server, whose socket nobody else may use; root's it refuses.

    Args:
        server_url: of any database of the server; the pooler leads to all of them.
    """

    def __init__(self, program: Program, server_url: str) -> None:
        server = Path(parse_qs(urlsplit(server_url).query)["host"][0])
        owner = server.stat()
        self._folder = Path(tempfile.mkdtemp(prefix="agent-runner-pooler-", dir="/tmp"))
        config = self._folder / "pgbouncer.ini"
        config.write_text(_CONFIG.format(server=server, size=POOL_SIZE, port=_PORT, folder=self._folder))
        self._folder.chmod(0o755)
        account = {}
        if os.geteuid() == 0:
            os.chown(self._folder, owner.st_uid, owner.st_gid)
            account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program.path, config], env=program.environment(), stdout=log, stderr=log, **account
            )
        self._wait_until_there()

    def url(self, database_url: str) -> str:
        """The way to a database of the server through the pooler."""
        name = urlsplit(database_url).path.lstrip("/")
        return database_of(f"postgresql://postgres@/any?host={quote(str(self._folder), safe='')}&port={_PORT}", name)

    def stop(self) -> None:
        self._process.terminate()  # which it takes as "at once"
        self._process.wait(_START_S)
        shutil.rmtree(self._folder)

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def _wait_until_there(self) -> None:
        deadline = time.monotonic() + _START_S
        while not (self._folder / f".s.PGSQL.{_PORT}").exists():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
