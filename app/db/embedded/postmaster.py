"""The server process of a cluster, as its `postmaster.pid` and the operating system show it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

PORT = 5432  # names the socket; nothing listens on TCP


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What `postmaster.pid` says; not proof that the process lives or is a Postgres.

    The layout of the file is PostgreSQL's `src/include/utils/pidfile.h`. A server writes it bit by bit, so
    any line may be missing yet.
    """

    cluster: Path
    pid: int
    socket_dir: Path | None
    status: str

    @staticmethod
    def pid_file(cluster: Path) -> Path:
        return cluster / "postmaster.pid"

    @classmethod
    def of(cls, cluster: Path) -> Postmaster | None:
        """The server that `cluster` claims to have, with pid 0 if it has no number; None without the file."""
        try:
            lines = cls.pid_file(cluster).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return None
        lines += [""] * (8 - len(lines))
        pid, socket_dir = lines[0].strip(), lines[4].strip()
        return cls(
            cluster=cluster,
            pid=int(pid) if pid.isdecimal() else 0,
            socket_dir=Path(socket_dir) if socket_dir else None,
            status=lines[7].strip(),
        )

    def accepts_connections(self) -> bool:
        """Whether the server has finished starting and something listens on its socket.

        Asking the socket, not the process table, also finds a server in another container on the same volume.
        """
        if self.status != "ready" or self.socket_dir is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket_dir / f".s.PGSQL.{PORT}"))
            except OSError:
                return False
        return True

    def is_running(self) -> bool:
        """Whether the process with this id is this cluster's server, and not one that got the id later.

        A server changes into its data folder when it starts and stays there.
        """
        if self.pid <= 0:
            return False
        try:
            process = psutil.Process(self.pid)
            return process.name().startswith("postgres") and Path(process.cwd()) == self.cluster
        except psutil.Error:
            return False

    def is_unburied(self) -> bool:
        """Whether the process with this id has ended, and whoever started it has not taken notice yet.

        For Postgres and for `kill` there is such a process, so no other server starts before it is gone.
        """
        try:
            return self.pid > 0 and psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def id_was_recycled(self) -> bool:
        """Whether the id belongs to a living process that is not this server.

        Only then has the file to be removed: the server itself sees to one that names a dead process, and for
        that it compares with the shared memory that the file names.
        """
        return not self.is_running() and (self.pid <= 0 or psutil.pid_exists(self.pid))
