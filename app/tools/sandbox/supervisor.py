"""A program: runs one command within its bounds, and ends with it whatever that command started.

It is started by path, with nothing but the standard library, so that it is there within milliseconds and forks as a
single thread. On Linux only. Its descriptors:

    0  the order, one line of JSON; it stays open as long as somebody wants the result, and its end stops the command
    1  the command's output, both streams in one
    2  the report, lines of JSON: {"group": n} once the command runs, then {"exit_code", "signal", "stopped", "problem"}
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ORDER, REPORT = 0, 2

LOOK_S = 0.05
END_GRACE_S = 5.0
MAX_ORDER_BYTES = 8 * 1024 * 1024
OPEN_FILES = 256

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
LANDLOCK_RESTRICT_SELF = 446
CAPABILITIES_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


def main() -> None:
    order = read_order()
    close_others({number for number in (order["folder"], order["ruleset"]) if number is not None})
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    checked(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "adopt what the command leaves behind")
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, woken_up)
    leader, broken = start(order, libc)
    report({"group": leader})
    try:
        stopped = watch(leader, woken, order)
        code = end(leader)
        problem = broken.read().decode("utf-8", "replace") or None
        exited = None if code < 0 else code
        report(
            {
                "exit_code": exited,
                "signal": None if exited is not None else -code,
                "stopped": stopped,
                "problem": problem,
            }
        )
    finally:
        shutil.rmtree(order["scratch"], ignore_errors=True)


def woken_up(_number: int, _frame: object) -> None:
    """Without a handler of ours, nothing is written to the wake-up pipe."""


def read_order() -> dict[str, Any]:
    text = bytearray()
    while not text.endswith(b"\n"):
        piece = os.read(ORDER, 65536)
        if not piece or len(text) > MAX_ORDER_BYTES:
            sys.exit(1)
        text += piece
    return json.loads(text)


def close_others(kept: set[int]) -> None:
    """Close what else this process was born with. Some event loops pass on both ends of what they made for us."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > REPORT and number not in kept:
            with suppress(OSError):
                os.close(number)
    for number in kept:
        os.set_inheritable(number, False)


def report(facts: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        os.write(REPORT, json.dumps(facts).encode() + b"\n")


def checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")


def start(order: dict[str, Any], libc: ctypes.CDLL) -> tuple[int, Any]:
    """The command's process, which leads its own group, and a file of what kept it from running."""
    broken, tell = os.pipe()
    supervisor = os.getpid()
    leader = os.fork()
    if leader:
        os.close(tell)
        os.close(1)  # or the output would not end with the command
        return leader, os.fdopen(broken, "rb")
    try:
        become(order, libc, supervisor)
    except BaseException as error:  # noqa: BLE001 - this process has nothing above it
        os.write(tell, str(error).encode("utf-8", "replace")[:1000])
    os._exit(127)


def become(order: dict[str, Any], libc: ctypes.CDLL, supervisor: int) -> None:
    """Turn this process into the command. Nothing that fails here is passed over."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(1, 2)
    os.fchdir(order["folder"])
    signal.set_wakeup_fd(-1)
    # Python ignores these two, and what is ignored stays so in the program that takes its place.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    limits = order["limits"]
    limit(resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1)
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, limits["memory_bytes"])
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up privileges")
    checked(libc.capset(struct.pack("=Ii", CAPABILITIES_3, 0), bytes(24)), "give up capabilities")
    checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "be bound to the supervisor")
    if os.getppid() != supervisor:
        os._exit(127)
    if order["ruleset"] is not None:
        checked(libc.syscall(LANDLOCK_RESTRICT_SELF, order["ruleset"], 0), "confine the command to its folders")
    if order["filter"] is not None:
        code = ctypes.create_string_buffer(bytes.fromhex(order["filter"]))
        program = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
        held = ctypes.create_string_buffer(program)
        checked(
            libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(held), 0, 0),
            "filter the command's system calls",
        )
    os.execve(order["program"], order["argv"], order["env"])


def limit(which: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or leave the one that is lower already."""
    _, ceiling = resource.getrlimit(which)
    values = [soft, soft if hard is None else hard]
    if ceiling != resource.RLIM_INFINITY:
        values = [min(value, ceiling) for value in values]
    resource.setrlimit(which, (values[0], values[1]))


def watch(leader: int, woken: int, order: dict[str, Any]) -> str | None:
    """Wait until the command ends, or has to: says why it has to."""
    deadline = time.monotonic() + order["timeout_s"]
    while True:
        left = deadline - time.monotonic()
        readable, _, _ = select.select([ORDER, woken], [], [], max(0.0, min(LOOK_S, left)))
        if ORDER in readable:
            return "cancelled"
        if woken in readable:
            os.read(woken, 4096)
        if has_ended(leader):
            return None
        if left <= 0:
            return "timeout"
        if len(descendants()) > order["limits"]["processes"]:
            return "processes"


def has_ended(leader: int) -> bool:
    """Whether the command has ended. It is not reaped, so that its group's number stays its own."""
    while (state := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is not None:
        if state.si_pid == leader:
            return True
        os.waitpid(state.si_pid, 0)  # an orphan that came to us
    return False


def end(leader: int) -> int:
    """Kill all that the command started, and reap it: the command's exit code, or its signal as a negative number.

    The first kill takes the whole group at once. What had left the group comes to us as an orphan when its parent has
    died, and is killed then.
    """
    give_up = time.monotonic() + END_GRACE_S
    code = -signal.SIGKILL
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    while time.monotonic() < give_up:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == leader:
            code = os.waitstatus_to_exitcode(status)
        if pid:
            continue
        for orphan in descendants():
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
        time.sleep(0.002)
    return code


def descendants() -> list[int]:
    """Our children, theirs, and so on."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                waiting += map(int, listed.read_text().split())
        found.append(parent)
    return found[1:]


if __name__ == "__main__":
    main()
