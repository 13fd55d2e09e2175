"""Commands of a sandbox, as real processes: what they may do, what they cannot, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.tools.errors import CallError
from app.tools.sandbox import landlock, seccomp
from app.tools.sandbox.command import run_command
from app.tools.sandbox.confinement import missing
from app.tools.sandbox.profile import SandboxProfile
from tests.processes import PYTHON, children_with, gone, until

pytestmark = pytest.mark.skipif(
    missing(SandboxProfile()) is not None, reason=f"commands are refused here: {missing(SandboxProfile())}"
)

ROOT = Path(__file__).parents[4]

Profile = Callable[..., SandboxProfile]


async def sh(profile: SandboxProfile, script: str) -> dict[str, Any]:
    return await run_command(profile, ["sh", "-c", script], None)


async def python(profile: SandboxProfile, script: str) -> dict[str, Any]:
    return await run_command(profile, [PYTHON, "-I", "-S", "-c", script], None)


class TestRunning:
    async def test_answers_with_the_exit_code_and_both_streams_in_one(self, profile: Profile, work: Path) -> None:
        answer = await sh(profile(), "echo out; echo err >&2; pwd; exit 3")
        assert answer == {"exit_code": 3, "output": f"out\nerr\n{work}\n"}

    async def test_takes_arguments_as_they_are(self, profile: Profile) -> None:
        odd = "$HOME `id` ; rm -rf * | \n é \udc80"
        answer = await run_command(
            profile(), [PYTHON, "-I", "-S", "-c", "import sys; print(sys.argv[1:])", odd, ""], None
        )
        assert answer["output"] == "['$HOME `id` ; rm -rf * | \\n é ?', '']\n"

    async def test_runs_in_a_folder_of_the_sandbox_only(self, profile: Profile, work: Path) -> None:
        (work / "sub").mkdir()
        (work / "out").symlink_to("/")
        assert (await run_command(profile(), ["sh", "-c", "pwd"], "sub"))["output"] == f"{work}/sub\n"
        for folder in ("..", "/", "out"):
            with pytest.raises(CallError, match="outside of the sandbox"):
                await run_command(profile(), ["sh", "-c", "pwd"], folder)

    async def test_has_an_environment_of_its_own(self, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_KEY", "secret")
        answer = await sh(profile(env={"LEVEL": "3"}), "env | sed 's/=.*sandbox-.*/=scratch/' | sort")
        lines = [line for line in answer["output"].splitlines() if not line.startswith("PWD=")]
        assert lines == [
            "HOME=scratch",
            "LANG=C.UTF-8",
            "LEVEL=3",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "TMPDIR=scratch",
        ]

    async def test_has_no_input_no_terminal_and_no_descriptors_of_ours(self, profile: Profile) -> None:
        read, write = os.pipe()
        os.set_inheritable(read, True)
        script = (
            "import os,sys\n"
            "print(repr(sys.stdin.read()))\n"
            "found=[]\n"
            "for n in range(256):\n"
            "    try: os.fstat(n); found.append(n)\n"
            "    except OSError: pass\n"
            "print(found)\n"
            "try: open('/dev/tty')\n"
            "except OSError: print('no terminal')\n"
        )
        try:
            assert (await python(profile(), script))["output"] == "''\n[0, 1, 2]\nno terminal\n"
        finally:
            os.close(read)
            os.close(write)

    def test_has_no_descriptors_of_ours_under_uvloop_either(self, work: Path) -> None:
        inner = "import os\nfor n in range(256):\n    try: os.fstat(n); print(n)\n    except OSError: pass"
        settings = {"commands": [PYTHON], "paths": {"write": [str(work)], "read": [sys.base_prefix]}}
        script = (
            "import uvloop\n"
            "from app.tools.sandbox.command import run_command\n"
            "from app.tools.sandbox.profile import SandboxProfile\n"
            f"profile = SandboxProfile.model_validate({settings!r})\n"
            f"print(uvloop.run(run_command(profile, [{PYTHON!r}, '-I', '-S', '-c', {inner!r}], None)))\n"
        )
        strict = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
        done = subprocess.run(strict, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert (done.stdout, done.stderr) == ("{'exit_code': 0, 'output': '0\\n1\\n2\\n'}\n", "")

    async def test_without_folders_runs_in_one_of_its_own(self, profile: Profile) -> None:
        answer = await sh(profile(paths={}), 'echo x > "$HOME/a" && cat a; pwd')
        assert answer["output"].startswith("x\n/")
        assert "sandbox-" in answer["output"]

    @pytest.mark.parametrize(
        ("argv", "problem"),
        [
            (["id"], "'id' is no command of the sandbox; the commands are: cat, ls, "),
            (["./sh"], "is no command"),
            (["../../bin/sh"], "is no command"),
            (["/usr/bin/id"], "is no command"),
            ([""], "is no command"),
            ([], "is no command"),
            (["sh", "a\0b"], "no NUL"),
            (["sh"] * 1001, "at most 1000 arguments"),
            (["sh", "x" * 200_000], "more than 131072 bytes"),
        ],
    )
    async def test_refuses_what_the_profile_does_not_name(
        self, argv: list[str], problem: str, profile: Profile
    ) -> None:
        with pytest.raises(CallError, match=problem):
            await run_command(profile(), argv, None)

    async def test_says_why_a_program_did_not_run(self, profile: Profile, tmp_path: Path) -> None:
        program = tmp_path / "broken"
        program.write_bytes(b"\x7fELF nonsense")
        program.chmod(0o755)
        with pytest.raises(CallError, match=r"could not run the command: .*Exec format error"):
            await run_command(profile(commands=[str(program)]), [str(program)], None)


class TestFiles:
    async def test_outside_of_the_folders_are_out_of_reach(self, profile: Profile, tmp_path: Path, work: Path) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("secret")
        (work / "link").symlink_to(secret)
        script = (
            f"cat {secret}; cat link; cat ../secret.txt; ls {tmp_path}; echo x > {tmp_path}/new; cat /proc/1/environ"
        )
        answer = await sh(profile(), script)
        assert answer["output"].count("ermission denied") == 6
        assert "secret\n" not in answer["output"]
        assert not (tmp_path / "new").exists()

    async def test_to_read_cannot_be_written_and_to_write_cannot_be_run(
        self, profile: Profile, tmp_path: Path, work: Path
    ) -> None:
        docs = tmp_path / "docs"
        docs.mkdir()
        (docs / "tool").write_text("#!/bin/sh\necho ran\n")
        (docs / "tool").chmod(0o755)
        confined = profile(paths={"read": [str(docs)], "write": [str(work)]})
        answer = await sh(
            confined,
            f"{docs}/tool; echo x > {docs}/new; rm {docs}/tool; cat {docs}/tool > own; chmod +x own; ./own; cat own",
        )
        assert answer["output"].startswith("ran\n")
        assert answer["output"].count("ermission denied") == 3
        assert answer["output"].endswith("#!/bin/sh\necho ran\n")

    async def test_cannot_be_reached_with_privileges(self, profile: Profile) -> None:
        script = (
            "import ctypes, os\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "print(libc.mount(b'none', b'/mnt', b'tmpfs', 0, 0), libc.unshare(0x10000000), libc.chroot(b'/'))\n"
            "print(libc.prctl(39, 0, 0, 0, 0))\n"  # PR_GET_NO_NEW_PRIVS
            "try: os.setuid(12345)\n"
            "except PermissionError: print('no other user')\n"
        )
        answer = await python(profile(), script)
        assert answer["output"] == "-1 -1 -1\n1\nno other user\n"


class TestNetwork:
    @pytest.fixture
    def listening(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def script(self, port: int) -> str:
        return (
            "import socket\n"
            "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16):\n"
            "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):\n"
            "        try: socket.socket(family, kind)\n"
            "        except PermissionError: continue\n"
            "        except OSError as e: print('other', e); continue\n"
            "        print('made', family, kind)\n"
            "try: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "except PermissionError: pass\n"
            "a, b = socket.socketpair()\n"
            "a.send(b'x'); print(b.recv(1))\n"
            f"try: socket.create_connection(('127.0.0.1', {port}), 2); print('connected')\n"
            "except PermissionError: print('off')\n"
        )

    async def test_off_makes_no_socket_at_all(self, listening: int, profile: Profile) -> None:
        assert (await python(profile(), self.script(listening)))["output"] == "b'x'\noff\n"

    async def test_unenforced_is_off_where_the_kernel_can(self, listening: int, profile: Profile) -> None:
        assert (await python(profile(network="unenforced"), self.script(listening)))["output"] == "b'x'\noff\n"

    async def test_on_connects(self, listening: int, profile: Profile) -> None:
        assert (await python(profile(network="on"), self.script(listening)))["output"].endswith("connected\n")

    async def test_cannot_be_had_by_another_way(self, profile: Profile) -> None:
        script = (
            "import ctypes, errno\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"for number in ({_NUMBERS}):\n"
            "    print(libc.syscall(number, 0, 0, 0, 0, 0), errno.errorcode[ctypes.get_errno()])\n"
        )
        answer = await python(profile(), script)
        assert answer["output"] == "-1 EPERM\n" * 4


_MACHINE = seccomp._MACHINES[os.uname().machine]  # pyright: ignore[reportPrivateUsage]
_NUMBERS = f"{_MACHINE.io_uring_setup}, {_MACHINE.setns}, {_MACHINE.unshare}, {_MACHINE.keyctl}"


class TestBounds:
    async def test_of_time_end_the_command_and_keep_what_it_said(self, profile: Profile) -> None:
        answer = await sh(profile(timeout_s=0.3), "echo begun; sleep 1000; echo never")
        assert answer == {"exit_code": None, "output": "begun\n", "ended": "it ran for longer than 0.3 s"}

    async def test_of_processor_time(self, profile: Profile) -> None:
        answer = await python(profile(cpu_s=1), "while True: pass")
        assert answer == {"exit_code": None, "output": "", "ended": "it used more than 1 s of processor time"}

    async def test_of_memory(self, profile: Profile) -> None:
        answer = await python(profile(memory_mb=128), "x = bytearray(512 * 1024 * 1024)")
        assert answer["exit_code"] == 1
        assert "MemoryError" in answer["output"]

    async def test_of_a_files_size(self, profile: Profile, work: Path) -> None:
        answer = await sh(profile(file_mb=1), "exec cat /dev/zero > big")
        assert answer["ended"] == "it wrote a file of more than 1 MiB"
        assert (work / "big").stat().st_size == 1024 * 1024

    async def test_of_open_files(self, profile: Profile) -> None:
        answer = await python(profile(), "import os\nfor _ in range(1000): os.open('/dev/null', 0)")
        assert "Too many open files" in answer["output"]

    async def test_of_output_keep_its_beginning_and_its_end(self, profile: Profile) -> None:
        answer = await python(
            profile(output_bytes=2048), "import sys\nfor n in range(200_000): print(n)\nprint('the end')"
        )
        assert answer["exit_code"] == 0
        head, tail = answer["output"].split(" bytes left out]\n")
        assert head.startswith("0\n1\n2\n")
        assert tail.endswith("199999\nthe end\n")
        assert 2000 < len(answer["output"]) < 2200

    async def test_of_processes(self, profile: Profile) -> None:
        answer = await sh(profile(processes=5), "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait")
        assert answer == {"exit_code": None, "output": "", "ended": "it had more than 5 processes"}

    async def test_of_processes_end_a_fork_bomb(self, profile: Profile) -> None:
        bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
        answer = await python(profile(processes=20), bomb)
        assert answer["ended"] == "it had more than 20 processes"


class TestEnd:
    async def test_takes_background_processes_along(self, profile: Profile) -> None:
        answer = await sh(profile(), "sleep 1000 & (sleep 1000 & sleep 1000 &) & echo done")
        assert answer == {"exit_code": 0, "output": "done\n"}

    async def test_cannot_be_dodged_by_leaving_the_group_or_ignoring_signals(self, profile: Profile) -> None:
        script = (
            "import os, signal, sys, time\n"
            "for name in ('setsid', 'setpgrp'):\n"
            "    if os.fork() == 0:\n"
            "        try: getattr(os, name)(); print('left', flush=True)\n"
            "        except PermissionError: print('kept', flush=True)\n"
            "        for number in range(1, 32):\n"
            "            try: signal.signal(number, signal.SIG_IGN)\n"
            "            except OSError: pass\n"
            "        time.sleep(1000)\n"
            "time.sleep(0.3)\n"
        )
        answer = await python(profile(), script)
        assert answer["output"] == "kept\nkept\n"

    async def test_by_cancellation_kills_everything(self, profile: Profile, work: Path) -> None:
        command = asyncio.create_task(sh(profile(), "echo $$ > pid; (sleep 1000 & echo $! > inner; wait) & wait"))
        await until(lambda: (work / "inner").exists() and bool((work / "inner").read_text()))
        pids = [int((work / name).read_text()) for name in ("pid", "inner")]
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        assert all(map(gone, pids))

    async def test_comes_with_the_supervisors(self, profile: Profile, work: Path) -> None:
        command = asyncio.create_task(sh(profile(), "echo $$ > pid; sleep 1000 & echo $! > inner; wait"))
        await until(lambda: (work / "inner").exists() and bool((work / "inner").read_text()))
        pids = [int((work / name).read_text()) for name in ("pid", "inner")]
        (supervisor,) = children_with("supervisor")
        supervisor.send_signal(signal.SIGKILL)
        with pytest.raises(CallError, match="supervisor died"):
            await command
        await until(lambda: all(map(gone, pids)))

    def test_comes_with_the_services(self, work: Path) -> None:
        script = (
            "import asyncio, sys\n"
            "from app.tools.sandbox.command import run_command\n"
            "from app.tools.sandbox.profile import SandboxProfile\n"
            f"profile = SandboxProfile.model_validate({{'commands': ['sh'], 'paths': {{'write': [{str(work)!r}]}}}})\n"
            "asyncio.run(run_command(profile, ['sh', '-c', 'echo $$ > pid; sleep 1000 & wait'], None))\n"
        )
        service = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        asyncio.run(until(lambda: (work / "pid").exists() and bool((work / "pid").read_text())))
        pid = int((work / "pid").read_text())
        service.kill()
        service.wait()
        asyncio.run(until(lambda: gone(pid)))

    async def test_of_one_command_is_not_that_of_another(self, profile: Profile) -> None:
        answers = await asyncio.gather(*(sh(profile(), f"sleep 0.2; echo {n}") for n in range(8)))
        assert [answer["output"] for answer in answers] == [f"{n}\n" for n in range(8)]

    async def test_cannot_reach_processes_outside(self, profile: Profile) -> None:
        if landlock.abi() < 6:
            pytest.skip("this kernel does not keep signals inside")
        answer = await sh(profile(), f"kill -9 {os.getpid()}; kill -9 $PPID; echo tried")
        assert answer["exit_code"] == 0
        assert answer["output"].endswith("tried\n")
