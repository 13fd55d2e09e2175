"""What holds one command to its profile: the kernel's own means, or a refusal where they are missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.tools.errors import CallError
from app.tools.sandbox import landlock, seccomp
from app.tools.sandbox.profile import Files, Network, SandboxProfile

# Programs, the libraries that they load, and the public facts about the system that libraries read.
_SYSTEM = tuple(
    map(
        Path,
        (
            *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"),
            *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
            *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/ca-certificates"),
            *("/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf", "/etc/passwd", "/etc/group"),
            *("/etc/protocols", "/etc/services", "/etc/mime.types", "/etc/magic"),
        ),
    )
)
_DEVICES = tuple(map(Path, ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")))


@dataclass(frozen=True, slots=True)
class Confinement:
    """
    Args:
        ruleset: of Landlock, an open descriptor; None where files are not confined.
        system_calls: the filter's program; None where nothing is filtered.
    """

    ruleset: int | None
    system_calls: bytes | None


def missing(profile: SandboxProfile) -> str | None:
    """Why this machine cannot hold commands to a profile, or None if it can."""
    if sys.platform != "linux":
        return "commands can be bounded on Linux only"
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return "this kernel does not list a process's children (CONFIG_PROC_CHILDREN, and /proc)"
    if profile.files is Files.CONFINED and not landlock.abi():
        return "this kernel cannot confine a command to folders (Landlock, Linux 5.13 or later)"
    if profile.network is Network.OFF and not seccomp.is_available():
        return "this kernel cannot keep a command off the network (seccomp filters, on x86_64 or aarch64)"
    return None


@contextmanager
def confined(profile: SandboxProfile, scratch: Path) -> Generator[Confinement]:
    """The means for one command.

    Args:
        scratch: a folder of the command's own.

    Raises:
        CallError: the profile asks for what this machine cannot do.
    """
    if (reason := missing(profile)) is not None:
        raise CallError(f"the sandbox cannot run commands here: {reason}")
    filtered = None
    if seccomp.is_available():
        filtered = seccomp.filter_program(network=profile.network is Network.ON)
    ruleset = landlock.ruleset(_rules(profile, scratch)) if landlock.abi() else None
    try:
        yield Confinement(ruleset, filtered)
    finally:
        if ruleset is not None:
            os.close(ruleset)


def _rules(profile: SandboxProfile, scratch: Path) -> Iterator[tuple[Path, int]]:
    for path in (*_SYSTEM, *profile.paths.read):
        yield path, landlock.RUN
    for path in profile.commands.values():
        yield path, landlock.RUN
    for path in (*profile.paths.write, scratch):
        yield path, landlock.WRITE
    for path in _DEVICES:
        yield path, landlock.READ | landlock.WRITE
