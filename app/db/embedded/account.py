"""The account that the server runs under: Postgres refuses to run as root, so root lends it another one."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from app.db.embedded.errors import EmbeddedPostgresError
from app.telemetry.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """A user and a group by their numbers."""

    uid: int
    gid: int

    def admit(self, path: Path) -> None:
        """Let this account pass through the folders above `path`. Widens only what is shut, and only to pass.

        Raises:
            EmbeddedPostgresError: A folder is shut and cannot be opened.
        """
        for folder in reversed(path.parents):
            self._grant(folder, stat.S_IXUSR)

    def admit_tree(self, root: Path) -> None:
        """Let this account read `root` and all below it, and run what its owner may run.

        Raises:
            EmbeddedPostgresError: As for `admit`.
        """
        self.admit(root)
        for folder, _, files in os.walk(root):
            self._grant(Path(folder), stat.S_IRUSR | stat.S_IXUSR)
            for name in files:
                path = Path(folder, name)
                if not path.is_symlink():
                    self._grant(path, stat.S_IRUSR | (path.stat().st_mode & stat.S_IXUSR))

    def may_run(self, program: Path) -> bool:
        """Whether the program's own mode, leaving the folders above it aside, lets this account run it."""
        wanted = self._as_seen(program.stat(), stat.S_IRUSR | stat.S_IXUSR)
        return program.stat().st_mode & wanted == wanted

    def _as_seen(self, of: os.stat_result, owner_bits: int) -> int:
        """The owner's permission bits, moved to the class (owner, group, others) that this account is in."""
        if of.st_uid == self.uid:
            return owner_bits
        return owner_bits >> 3 if of.st_gid == self.gid else owner_bits >> 6

    def _grant(self, path: Path, owner_bits: int) -> None:
        now = path.stat()
        wanted = self._as_seen(now, owner_bits)
        if now.st_mode & wanted == wanted:
            return
        try:
            path.chmod(stat.S_IMODE(now.st_mode) | wanted)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"The embedded Postgres runs as user {self.uid}, because root may not run it, "
                f"and cannot be given access to {path}: {error.strerror}."
            ) from error
        log.info("permission_widened", path=str(path), bits=oct(wanted))


def server_account(cluster: Path) -> Account | None:
    """The account to run the server of `cluster` under; None for the one that this process has.

    For root it is the first owner, other than root, of the cluster or of a folder above it: whoever has a
    checkout in their home keeps their own files. Where root owns all of them it is `nobody`, with root's
    group, so that folders shut to others need no more than the group's right to pass.
    """
    if os.geteuid() != 0:
        return None
    for path in (cluster, *cluster.parents):
        if not path.exists():
            continue
        owner = path.stat()
        if owner.st_uid != 0 and _is_known(owner.st_uid):
            return Account(owner.st_uid, owner.st_gid)
    return Account(pwd.getpwnam("nobody").pw_uid, 0)


def _is_known(uid: int) -> bool:
    """initdb looks its own user up by name and fails for a number that has none."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
