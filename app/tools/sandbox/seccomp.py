"""The system calls that a confined command does without, as a filter that the kernel runs.

A command can leave neither its process group (so that one signal ends all of it) nor its namespaces. It gets at no
other process: not at its keys, its memory, its descriptors or its limits, and leaves no memory behind that outlives it.
What Landlock does not look at, modes, owners, times and attributes of files by their paths, it cannot change; of files
that it has open it can, but for bits that would make a program run as somebody else. Without network it can make no
socket at all, not even a local one to some other service.

Format: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

_ACTIONS = Path("/proc/sys/kernel/seccomp/actions_avail")

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_EQUALS = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_HAS_BITS = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data; both machines are little-endian, so an argument's low half comes first.
_NUMBER, _MACHINE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_NOT_PERMITTED = 0x00050000 | errno.EPERM
_NOT_THERE = 0x00050000 | errno.ENOSYS

_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, and CLONE_NEWCGROUP to CLONE_NEWNET
_SOCKET_TYPE = 0xF
_STREAM = 1
_SET_ID = 0o6000


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of include/uapi/linux/audit.h and of the machine's system call table."""

    audit_arch: int
    setpgid: int
    setsid: int
    unshare: int
    setns: int
    clone: int
    clone3: int
    add_key: int
    request_key: int
    keyctl: int
    io_uring_setup: int
    socket: int
    socketpair: int
    prlimit64: int
    fchmod: int
    utimensat: int
    others: tuple[int, ...]


# Those with the same number on every machine: pidfd_open, pidfd_getfd, pidfd_send_signal, process_madvise,
# memfd_secret, fchmodat2, setxattrat, removexattrat, file_setattr.
_NEW_CALLS = (434, 438, 424, 440, 447, 452, 463, 466, 469)

# chmod to fchownat; utime, utimes, futimesat; the xattr calls that change; System V and POSIX shared memory, semaphores
# and queues; memfd_create; ptrace, process_vm_readv, process_vm_writev, kcmp.
_X86_64_CALLS = (
    *(90, 268, 92, 93, 94, 260, 132, 235, 261, 188, 189, 190, 197, 198, 199),
    *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241, 319, 101, 310, 311, 312),
)
_AARCH64_CALLS = (
    *(53, 54, 55, 5, 6, 7, 14, 15, 16),
    *(194, 195, 196, 190, 191, 192, 193, 186, 187, 188, 189, 180, 181, 279, 117, 270, 271, 272),
)

_MACHINES = {
    "x86_64": _Machine(
        *(0xC000003E, 109, 112, 272, 308, 56, 435, 248, 249, 250, 425, 41, 53, 302, 91, 280),
        (*_X86_64_CALLS, *_NEW_CALLS),
    ),
    "aarch64": _Machine(
        *(0xC00000B7, 154, 157, 97, 268, 220, 435, 217, 218, 219, 425, 198, 199, 261, 52, 88),
        (*_AARCH64_CALLS, *_NEW_CALLS),
    ),
}

_Code = list[tuple[int, int, int, int]]


def is_available() -> bool:
    """Whether this kernel runs filters, on a machine whose system calls are known here."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and _ACTIONS.is_file()


def filter_program(*, network: bool) -> bytes:
    """The filter of a command, as an array of struct sock_filter.

    Args:
        network: whether the command may make sockets.
    """
    machine = _MACHINES[platform.machine()]
    code: _Code = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUALS, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if platform.machine() == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _NOT_PERMITTED)]
    denied = [machine.setpgid, machine.setsid, machine.unshare, machine.setns]
    denied += [machine.add_key, machine.request_key, machine.keyctl]
    # Its requests pass by this filter, and it can make sockets.
    denied.append(machine.io_uring_setup)
    if not network:
        denied.append(machine.socket)
        # A pair of datagram sockets could send to any local name.
        code += [
            (_EQUALS, 0, 5, machine.socketpair),
            (_LOAD, 0, 0, _SECOND_ARGUMENT),
            (_AND, 0, 0, _SOCKET_TYPE),
            (_EQUALS, 1, 0, _STREAM),
            (_RETURN, 0, 0, _NOT_PERMITTED),
            (_RETURN, 0, 0, _ALLOW),
        ]
    denied += machine.others
    code += _only_own_limits(machine) + _only_open_files(machine)
    for number in denied:
        code += [(_EQUALS, 0, 1, number), (_RETURN, 0, 0, _NOT_PERMITTED)]
    # The flags of clone3 lie in memory, where no filter can look; the C library falls back to clone.
    code += [(_EQUALS, 0, 1, machine.clone3), (_RETURN, 0, 0, _NOT_THERE)]
    code += [
        (_EQUALS, 0, 3, machine.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_HAS_BITS, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _only_own_limits(machine: _Machine) -> _Code:
    """prlimit64 of the caller itself (process 0), which the C library's getrlimit is."""
    return [
        (_EQUALS, 0, 4, machine.prlimit64),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUALS, 1, 0, 0),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _only_open_files(machine: _Machine) -> _Code:
    """fchmod without set-id bits, and utimensat without a path: that of an open file."""
    return [
        (_EQUALS, 0, 4, machine.fchmod),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_HAS_BITS, 0, 1, _SET_ID),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUALS, 0, 6, machine.utimensat),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUALS, 0, 2, 0),
        (_LOAD, 0, 0, _SECOND_ARGUMENT + 4),
        (_EQUALS, 1, 0, 0),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
