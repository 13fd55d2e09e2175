"""`agent-runner serve` as a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import httpx
import psutil

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("agent-runner")

START_S = 60.0
STOP_S = 30.0
_READY = re.compile(r"(?:ready|listening) on (http://\S+)")
_READY_JSON = re.compile(r'"url":"(http://[^"]+)"')  # with LOG_FORMAT=json
_TAIL = 60


class Service:
    """One running service.

    Args:
        settings: environment variables; besides PATH there are no others.
        folder: where it stands; a new empty one by default, so that no `.env` and no agents are found by accident.

    Attributes:
        url: where it answers, once `listening` has returned.
        running: all that were started and not stopped yet, by process id.
    """

    running: ClassVar[dict[int, Service]] = {}

    def __init__(self, settings: dict[str, str], folder: Path | None = None) -> None:
        self._logs = Path(tempfile.mkdtemp(prefix="agent-runner-service-", dir="/tmp"))
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": "0", **settings}
        with self._log("stdout").open("wb") as out, self._log("stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [PROGRAM, "serve"], cwd=folder or self._logs, env=environment, stdout=out, stderr=err
            )
        self.url = ""
        Service.running[self.pid] = self

    @property
    def pid(self) -> int:
        return self.process.pid

    def listening(self) -> Service:
        """Wait until it says where it answers."""
        deadline = time.monotonic() + START_S
        while not (said := _READY.search(self.stdout()) or _READY_JSON.search(self.stderr())):
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}\n{self.told()}"
            assert time.monotonic() < deadline, f"the service did not start in {START_S:g} s\n{self.told()}"
            time.sleep(0.02)
        self.url = said[1]
        return self

    def ready(self) -> Service:
        """Wait until /readyz says that it takes work."""
        self.listening()
        deadline = time.monotonic() + START_S
        with httpx.Client(base_url=self.url, trust_env=False, verify=False) as http:
            while (answer := http.get("/readyz")).status_code != 200:
                assert time.monotonic() < deadline, f"never ready: {answer.text}\n{self.told()}"
                time.sleep(0.02)
        return self

    def kill(self) -> None:
        """SIGKILL; the workers of several are not told and end by themselves."""
        self.process.kill()
        self.process.wait(STOP_S)

    def terminate(self) -> None:
        """Tell it to stop, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the service did not end in {STOP_S:g} s\n{self.told()}") from None

    def stop(self) -> None:
        """Make sure that nothing of it is left, whatever state it is in."""
        Service.running.pop(self.pid, None)
        if self.process.poll() is None:
            workers = psutil.Process(self.pid).children(recursive=True)
            self.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                for process in (self.process, *workers):
                    process.kill()
                self.process.wait(STOP_S)
        shutil.rmtree(self._logs, ignore_errors=True)

    def stdout(self) -> str:
        return self._log("stdout").read_text(errors="replace")

    def stderr(self) -> str:
        return self._log("stderr").read_text(errors="replace")

    def told(self) -> str:
        """The last lines of its output, for the report of a test that failed."""
        lines = [f"stdout of {self.pid}:", *self.stdout().splitlines()[-_TAIL:]]
        return "\n".join([*lines, f"stderr of {self.pid}:", *self.stderr().splitlines()[-_TAIL:]])

    def _log(self, name: str) -> Path:
        return self._logs / name
