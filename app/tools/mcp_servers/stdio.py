"""A server that is a program: its process, its pipes, and the end of both.

The `mcp` package's own transport reads lines of any length and waits seconds for a server that does not end; this one
has bounds for both, and reads the standard error output.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from app.telemetry.logs import get_logger
from app.tools.mcp_servers.declaration import StdioDeclaration
from app.tools.mcp_servers.flood import Flooded, FloodGate
from app.tools.mcp_servers.link import InboundStream, Link
from app.tools.mcp_servers.remote import NotConnected

_INHERITED = ("PATH", "HOME", "LANG")
_ENDS_BY_ITSELF_S = 1.0
_ENDS_WHEN_TOLD_S = 1.0
_REAPED_S = 1.0
_LAST_WORDS_S = 0.2
_MAX_UNREAD_BYTES = 64 * 1024
_MAX_STDERR_BYTES = 4 * 1024 * 1024
_MAX_STDERR_LINES = 10_000
_MAX_LOGGED_CHARS = 500

_log = get_logger(__name__)


class _Pipes(SubprocessStreamProtocol):
    """asyncio's own protocol, which also tells when the process is gone: its `wait` waits for the pipes too, and a
    grandchild may hold those for ever."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class _Process:
    """A program in a process group of its own."""

    def __init__(self, transport: asyncio.SubprocessTransport, pipes: _Pipes) -> None:
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        assert pipes.stderr is not None
        self.stdin = pipes.stdin
        self.stdout = pipes.stdout
        self.stderr = pipes.stderr
        self.exited = pipes.exited
        self._transport = transport
        self._group = transport.get_pid()

    @classmethod
    async def start(cls, declaration: StdioDeclaration, env: Mapping[str, str], limit: int) -> _Process:
        """Raises: NotConnected, if it cannot be started."""
        loop = asyncio.get_running_loop()
        try:
            transport, pipes = await loop.subprocess_exec(
                lambda: _Pipes(limit, loop),
                declaration.command,
                *declaration.args,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env={**_inherited(), **env},
                cwd=declaration.cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            where = f" in {declaration.cwd}" if declaration.cwd else ""
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise NotConnected(f"{declaration.command!r} cannot be started{where}: {reason}") from error
        return cls(transport, pipes)

    @property
    def end(self) -> str:
        """How the process ended, for people."""
        status = self._transport.get_returncode()
        if status is None:
            return "it closed its output"
        if status < 0:
            with suppress(ValueError):
                return f"it was ended by {signal.Signals(-status).name}"
        return f"it ended with status {status}"

    async def stop(self, *, gently: bool) -> None:
        """End the process and all of its group, within three seconds.

        The order is the protocol's: close its input, then ask, then kill
        (https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown).
        """
        try:
            if gently:
                self.stdin.close()
                if not await self._exits_within(_ENDS_BY_ITSELF_S):
                    self._signal(signal.SIGTERM)
                    await self._exits_within(_ENDS_WHEN_TOLD_S)
        finally:
            # Also what the process left behind in its group, and whatever interrupts this.
            self._signal(signal.SIGKILL)
            self._transport.close()
        await self._exits_within(_REAPED_S)

    async def _exits_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.exited.wait(), seconds)
        return self.exited.is_set()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)


class _Output:
    """The process's standard output, a message a line."""

    def __init__(self, process: _Process, link: Link) -> None:
        self._process = process
        self._link = link

    async def receive(self) -> SessionMessage | Exception:
        while True:
            line = await self._line()
            self._link.gate.take(size=len(line))
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError:
                # Programs that print a greeting are common enough.
                self._link.gate.take(messages=1)
                _log.debug("mcp_output_no_message", server=self._link.server, line=_shown(line, self._link))
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """The pipe is closed with the process."""

    async def _line(self) -> bytes:
        try:
            return await self._process.stdout.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            self._link.lose(f"it sent a message of more than {self._link.max_bytes} bytes")
        except (asyncio.IncompleteReadError, ConnectionError):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.exited.wait(), _LAST_WORDS_S)
            self._link.lose(self._process.end)
        raise anyio.EndOfStream


class _Input:
    """The process's standard input; never waits for a process that has stopped to read."""

    def __init__(self, process: _Process) -> None:
        self._stdin = process.stdin

    async def send(self, item: SessionMessage, /) -> None:
        if self._stdin.is_closing() or self._stdin.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            raise anyio.BrokenResourceError
        self._stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        try:
            await self._stdin.drain()
        except (ConnectionError, RuntimeError) as error:  # uvloop raises RuntimeError for a closed pipe
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """The pipe is closed with the process."""

    async def __aenter__(self) -> _Input:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@asynccontextmanager
async def stdio_streams(
    declaration: StdioDeclaration, env: Mapping[str, str], link: Link
) -> AsyncGenerator[tuple[InboundStream, _Input]]:
    """Start the program and speak to it.

    Args:
        env: all that it gets to see of the environment beside PATH, HOME and LANG.

    Raises:
        NotConnected: it cannot be started.
    """
    process = await _Process.start(declaration, env, link.max_bytes)
    beside = [
        asyncio.create_task(_log_stderr(process.stderr, link), name=f"mcp {link.server} stderr"),
        asyncio.create_task(_watch(process, link), name=f"mcp {link.server} exit"),
    ]
    try:
        yield InboundStream(_Output(process, link), link), _Input(process)
    finally:
        try:
            await process.stop(gently=link.gently)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside, timeout=_REAPED_S)


async def _watch(process: _Process, link: Link) -> None:
    """A grandchild may hold the output open, so its end is not the only sign of the process's."""
    await process.exited.wait()
    await asyncio.sleep(_LAST_WORDS_S)
    link.lose(process.end)


async def _log_stderr(stderr: asyncio.StreamReader, link: Link) -> None:
    gate = FloodGate(_MAX_STDERR_LINES, _MAX_STDERR_BYTES)
    try:
        while chunk := await stderr.read(_MAX_UNREAD_BYTES):
            gate.take(size=len(chunk))
            for line in chunk.splitlines():
                gate.take(messages=1)
                _log.debug("mcp_stderr", server=link.server, line=_shown(line, link))
    except Flooded:
        link.lose("it flooded its standard error output")
    except (ConnectionError, ValueError) as error:
        _log.debug("mcp_stderr_ended", server=link.server, reason=str(error))


def _inherited() -> dict[str, str]:
    known = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"LANG": "C.UTF-8", **known}


def _shown(line: bytes, link: Link) -> str:
    return link.redacted(line[:_MAX_LOGGED_CHARS].decode("utf-8", "replace").strip())
