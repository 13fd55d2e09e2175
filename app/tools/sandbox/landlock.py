"""Which files a command may touch, as a rule set that the kernel enforces: Landlock, Linux 5.13 or later.

A process that a rule set restricts can also trace and (from ABI 6) signal none that it does not hold.

Source: https://www.kernel.org/doc/html/latest/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# The same numbers on every machine that Linux runs on, but for Alpha.
_CREATE_RULESET = 444
_ADD_RULE = 445

_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE = 1 << 4 | 1 << 5
_MAKE = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # folders, files, sockets, FIFOs, symbolic links; no devices
_REFER, _TRUNCATE, _DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15

READ = _READ_FILE | _READ_FOLDER
RUN = READ | _EXECUTE
# Not to run: what a command wrote is data.
WRITE = READ | _WRITE_FILE | _REMOVE | _MAKE | _REFER | _TRUNCATE
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL

_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_SCOPES = 0b11  # abstract local sockets and signals


def abi() -> int:
    """The version of Landlock that this kernel offers, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, _syscall(_CREATE_RULESET, None, 0, _VERSION))


def ruleset(rules: Iterable[tuple[Path, int]]) -> int:
    """A rule set that allows what `rules` allow and nothing else, as an open file descriptor.

    Args:
        rules: real paths, and what is allowed at and beneath each; one that does not exist allows nothing.

    Raises:
        OSError: the kernel has no Landlock, or refuses.
    """
    version = abi()
    handled = _HANDLED.get(min(version, 5), 0)
    # Fields that an older kernel does not know must not be sent to it.
    attributes = struct.pack("=QQQ", handled, 0, _SCOPES)[: 24 if version >= 6 else 8]
    descriptor = _checked(_syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    try:
        for path, access in rules:
            _allow(descriptor, path, access & handled)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _allow(descriptor: int, path: Path, access: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, beneath)
        _checked(_syscall(_ADD_RULE, descriptor, _PATH_BENEATH, rule, 0))
    finally:
        os.close(beneath)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return libc.syscall(ctypes.c_long(number), *passed)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
