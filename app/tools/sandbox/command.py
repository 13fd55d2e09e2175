"""One command of a profile: started, bounded and ended with all that it started."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError

from app.telemetry.logs import get_logger
from app.tools.errors import CallError
from app.tools.sandbox.confinement import Confinement, confined
from app.tools.sandbox.paths import SandboxPaths, opened_folder
from app.tools.sandbox.profile import MIB, SandboxProfile

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_LOADER = ("LD_LIBRARY_PATH",)  # some Pythons do not start without it
_MAX_ARGUMENTS = 1000
_MAX_ARGUMENTS_BYTES = 128 * 1024
_PIECE = 65_536
_MAX_REPORT_BYTES = 64 * 1024

# Beyond the profile's own time: for the supervisor to start, to end everything, and to tell.
_GRACE_S = 15.0
_LAST_WORDS_S = 1.0

_log = get_logger(__name__)


class _Kept:
    """The beginning and the end of an output that may be far longer."""

    def __init__(self, most: int) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._half = most // 2
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if (room := self._half - len(self._head)) > 0:
            self._head += piece[:room]
            piece = piece[room:]
        self._tail += piece
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    def text(self) -> str:
        tail = self._tail[-self._half :]
        cut = self._size - len(self._head) - len(tail)
        note = f"\n[{cut} bytes left out]\n".encode() if cut else b""
        return bytes(self._head + note + tail).decode("utf-8", "replace")


class _Report(BaseModel):
    """What the supervisor told. `stopped` is absent until it told how the command ended."""

    group: int | None = Field(default=None, gt=1)
    exit_code: int | None = None
    signal: int | None = None
    stopped: str | None = None
    problem: str | None = None

    @property
    def is_complete(self) -> bool:
        return "stopped" in self.model_fields_set

    @classmethod
    def of(cls, text: str) -> _Report:
        report = cls()
        for line in text.splitlines():
            # Other lines are the last words of a supervisor that broke.
            with suppress(ValidationError):
                told = cls.model_validate_json(line)
                report = report.model_copy(update=told.model_dump(exclude_unset=True))
        return report


async def run_command(profile: SandboxProfile, argv: Sequence[str], cwd: str | None) -> dict[str, Any]:
    """Run a program and wait for its end.

    Args:
        argv: the program, one of the profile's commands, and its arguments; there is no shell.
        cwd: a folder of the profile, its first one by default.

    Returns:
        `output`, both streams in one and bounded; `exit_code`, or None and `ended` with what ended it instead.

    Raises:
        CallError: the profile or this machine does not allow it, or it could not be started.
    """
    program = _program(profile, argv)
    with _scratch() as scratch, confined(profile, scratch) as confinement, _folder(profile, cwd, scratch) as folder:
        order = _order(profile, program, argv, scratch, folder, confinement)
        passed = [folder] if confinement.ruleset is None else [folder, confinement.ruleset]
        report, output = await _supervised(order, passed, profile)
    return _answer(report, output, profile)


def _program(profile: SandboxProfile, argv: Sequence[str]) -> Path:
    if not argv or argv[0] not in profile.commands:
        allowed = ", ".join(sorted({path.name for path in profile.commands.values()})) or "none"
        raise CallError(f"{argv[0] if argv else ''!r} is no command of the sandbox; the commands are: {allowed}")
    if len(argv) > _MAX_ARGUMENTS or any("\0" in each for each in argv):
        raise CallError(f"a command has at most {_MAX_ARGUMENTS} arguments, and no NUL in them")
    if sum(len(each.encode("utf-8", "surrogatepass")) for each in argv) > _MAX_ARGUMENTS_BYTES:
        raise CallError(f"the arguments have more than {_MAX_ARGUMENTS_BYTES} bytes")
    return profile.commands[argv[0]]


@contextmanager
def _scratch() -> Generator[Path]:
    """A folder for one command. The supervisor removes it, unless it died."""
    path = tempfile.mkdtemp(prefix="sandbox-")
    try:
        yield Path(os.path.realpath(path))
    finally:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _folder(profile: SandboxProfile, cwd: str | None, scratch: Path) -> Generator[int]:
    if cwd is None and not (profile.paths.read or profile.paths.write):
        descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    with opened_folder(SandboxPaths(profile.paths).place(cwd or ".")) as descriptor:
        yield descriptor


def _order(
    profile: SandboxProfile,
    program: Path,
    argv: Sequence[str],
    scratch: Path,
    folder: int,
    confinement: Confinement,
) -> bytes:
    own = {"PATH": _PATH, "HOME": str(scratch), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}
    order: dict[str, Any] = {
        "program": str(program),
        "argv": [each.encode("utf-8", "replace").decode() for each in argv],
        "env": own | profile.env,
        "folder": folder,
        "ruleset": confinement.ruleset,
        "filter": None if confinement.system_calls is None else confinement.system_calls.hex(),
        "scratch": str(scratch),
        "timeout_s": profile.timeout_s,
        "limits": {
            "cpu_s": profile.cpu_s,
            "memory_bytes": profile.memory_mb * MIB,
            "file_bytes": profile.file_mb * MIB,
            "processes": profile.processes,
        },
    }
    return orjson.dumps(order) + b"\n"


async def _supervised(order: bytes, passed: list[int], profile: SandboxProfile) -> tuple[_Report, str]:
    try:
        # -I -S: nothing but the standard library, whatever this process's environment says.
        supervisor = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(_SUPERVISOR)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={name: os.environ[name] for name in _LOADER if name in os.environ},
            pass_fds=passed,
            start_new_session=True,
        )
    except OSError as error:
        raise CallError(f"the sandbox cannot start a process: {error}") from error
    told = _Kept(_MAX_REPORT_BYTES)
    kept = _Kept(profile.output_bytes)
    # The report's end is the supervisor's: unlike the output, nobody else holds it.
    report = asyncio.create_task(_read(supervisor.stderr, told), name="sandbox report")
    output = asyncio.create_task(_read(supervisor.stdout, kept), name="sandbox output")
    try:
        await _send(supervisor, order)
        await asyncio.wait((report,), timeout=profile.timeout_s + _GRACE_S)
    finally:
        await _to_its_end(_end(supervisor, report, output, told))
    return _Report.of(told.text()), kept.text()


async def _send(supervisor: Process, order: bytes) -> None:
    assert supervisor.stdin is not None
    supervisor.stdin.write(order)
    with suppress(ConnectionError):
        await supervisor.stdin.drain()


async def _read(stream: asyncio.StreamReader | None, kept: _Kept) -> None:
    assert stream is not None
    while piece := await stream.read(_PIECE):
        kept.add(piece)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that may not be left half done, however often the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def _end(supervisor: Process, report: asyncio.Task[None], output: asyncio.Task[None], told: _Kept) -> None:
    """Leave nothing behind, within seconds: the end of its input tells the supervisor to end everything."""
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    _, slow = await asyncio.wait((report,), timeout=_GRACE_S)
    if slow:
        supervisor.kill()
        await asyncio.wait((report,), timeout=_LAST_WORDS_S)
    known = _Report.of(told.text())
    if not known.is_complete and known.group is not None:
        # It died without ending the command. A group's number is not given away while the group has members.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(known.group, signal.SIGKILL)
    _, held = await asyncio.wait((report, output), timeout=_LAST_WORDS_S)
    for task in held:
        _log.warning("sandbox_output_held", stream=task.get_name(), hint="a process outlived its sandbox")
        task.cancel()
    if not held:
        await supervisor.wait()


def _answer(report: _Report, output: str, profile: SandboxProfile) -> dict[str, Any]:
    if not report.is_complete:
        raise CallError("the sandbox's supervisor died, and the command was ended with it")
    if report.problem:
        raise CallError(f"the sandbox could not run the command: {report.problem}")
    answer: dict[str, Any] = {"exit_code": report.exit_code, "output": output}
    match report.stopped, report.signal:
        case None, None:
            pass
        case "timeout", _:
            answer |= {"exit_code": None, "ended": f"it ran for longer than {profile.timeout_s:g} s"}
        case "processes", _:
            answer |= {"exit_code": None, "ended": f"it had more than {profile.processes} processes"}
        case _, signal.SIGXCPU:
            answer["ended"] = f"it used more than {profile.cpu_s} s of processor time"
        case _, signal.SIGXFSZ:
            answer["ended"] = f"it wrote a file of more than {profile.file_mb} MiB"
        case _, number:
            answer["ended"] = f"by signal {number}"
    return answer
