"""Several workers behind one socket: whatever becomes of one of them, the service answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.client import an_agent, of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import SILENT, Model
from tests.acceptance.service import ROOT, STOP_S, Service
from tests.acceptance.waiting import DEADLINE_S, holds
from tests.model_server import Reply
from tests.processes import children_with, gone

FOR_EVER_S = "600"
_STORY = re.compile("startup complete|stopping")
_DIED = re.compile(r"worker_died.* exit=(\S+) hung=(\S+) lived_s=\S+ pid=(\d+) restart_s=(\S+)")


def workers_of(pid: int) -> list[int]:
    """The process ids of the living workers of a service, oldest first."""
    found = children_with("spawn_main", pid)
    return [worker.pid for worker in sorted(found, key=psutil.Process.create_time)]


def deaths(service: Service) -> list[tuple[int, str, float]]:
    """What the log tells of workers that died: process id, exit code or signal, and the pause after it."""
    return [(int(pid), end, float(pause)) for end, _, pid, pause in _DIED.findall(service.stderr())]


class Asking:
    """A caller that asks all the time, on a new connection each time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers = 0
        self.broken: list[str] = []

    async def run(self) -> None:
        """A connection that broke is made again once; the second one has to be answered."""
        while True:
            try:
                await self._ask()
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                self.broken.append(repr(error))
                await self._ask()
            self.answers += 1
            await asyncio.sleep(0.01)

    async def _ask(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, verify=False, timeout=DEADLINE_S) as http:
            assert (await http.get("/healthz")).status_code == 200


@asynccontextmanager
async def asking(service: Service) -> AsyncGenerator[Asking]:
    """Somebody asks the service for as long as this lasts, and is answered."""
    caller = Asking(service.url)
    task = asyncio.create_task(caller.run())
    try:
        await holds(lambda: task.done() or caller.answers > 0, "an answer")
        yield caller
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_worker_that_is_killed_again_and_again_is_started_ever_later_and_the_other_one_answers(
    database_url: str, settings: Settings, serve: Serve
) -> None:
    """Seen to fail without the doubling of the pause, and with a supervisor that does not start a worker again."""
    service = serve(settings(DATABASE_URL=database_url, WORKERS="2")).ready()
    stays, victim = workers_of(service.pid)
    killed: list[int] = []
    async with asking(service) as caller:
        for times in range(1, 6):
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
            await holds(lambda times=times: len(deaths(service)) == times, "the worker's death to be told")
            answers = caller.answers
            await holds(lambda answers=answers: caller.answers > answers, "an answer while one worker is dead")
            await holds(lambda: len(workers_of(service.pid)) == 2, "another worker")
            (victim,) = set(workers_of(service.pid)) - {stays}
    told = deaths(service)
    assert [(pid, end) for pid, end, _ in told] == [(pid, "SIGKILL") for pid in killed]
    assert len(set(killed)) == len(killed)
    pauses = [pause for _, _, pause in told]
    assert all(later > sooner for sooner, later in itertools.pairwise(pauses)), pauses
    service.terminate()
    assert await asyncio.to_thread(service.ended) == 0
    assert gone(stays)
    assert gone(victim)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agent-runner-supervised-", dir="/tmp") as made:
        yield Path(made)


async def test_workers_that_cannot_start_end_the_service_unless_one_has_been_ready(
    folder: Path, database_url: str, settings: Settings, serve: Serve
) -> None:
    """Seen to fail without the look at `_any_ready`: the service then ends with 3 the second time too."""
    module = folder / "late_tools.py"
    whole = "from app.tools import tool\n\n@tool\ndef late() -> None:\n    pass\n"
    broken = "raise RuntimeError('a defect of the operator')\n"
    module.write_text(broken)
    environment = settings(DATABASE_URL=database_url, WORKERS="2", TOOL_MODULES="late_tools")
    refused = serve(environment, folder)
    assert await asyncio.to_thread(refused.ended) == 3
    assert "cannot_start" in refused.stderr()

    module.write_text(whole)
    service = serve(environment, folder).ready()
    await holds(lambda: "ready on" in service.stdout(), "both workers to be ready")
    module.write_text(broken)
    _, victim = workers_of(service.pid)
    async with asking(service):
        os.kill(victim, signal.SIGKILL)
        await holds(lambda: len(deaths(service)) >= 3, "workers that cannot start")
        assert {end for _, end, _ in deaths(service)[1:]} == {"3"}
        module.write_text(whole)
        service.process.send_signal(signal.SIGHUP)  # obeyed as soon as all workers are ready again
        await holds(lambda: "signal=SIGTERM" in service.stderr(), "a worker to leave")


async def test_sighup_replaces_the_workers_one_after_the_other_and_no_connection_breaks(
    database_url: str, settings: Settings, serve: Serve
) -> None:
    """Seen to fail when all are replaced at once, and when the signal is not obeyed."""
    service = serve(settings(DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DELAY_S="0.2")).ready()
    before = set(workers_of(service.pid))
    async with asking(service) as caller:
        service.process.send_signal(signal.SIGHUP)
        await holds(lambda: len(set(workers_of(service.pid)) - before) == 2, "two other workers")
        await holds(lambda: len(_STORY.findall(service.stderr())) == 6, "both of them to be ready")
        assert not before & set(workers_of(service.pid))
        assert caller.broken == []
    began = "startup complete"
    assert _STORY.findall(service.stderr()) == [began, began, "stopping", began, "stopping", began]
    assert deaths(service) == []


async def test_ctrl_c_reaches_parent_and_workers_and_ends_them_once(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    """A worker hears it twice, and gives its runs back nevertheless; it leaves the delay out.

    Seen to fail with workers that take the second Ctrl-C for a wish to end at once.
    """
    environment = settings(DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DELAY_S="3", SHUTDOWN_GRACE_S="4")
    service = serve(environment).ready()
    model.script(SILENT)
    run_id = (await caller(service).create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    pids = [*workers_of(service.pid), service.pid]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert await asyncio.to_thread(service.ended) == 0
    assert "Traceback" not in service.stderr()
    assert "stopped_half_way" not in service.stderr()
    assert all(gone(pid) for pid in pids)
    model.script(Reply(text="Back again."))
    again = caller(serve({**environment, "WORKERS": "1", "SHUTDOWN_DELAY_S": "0"}).ready())
    assert (await again.wait(run_id))["status"] == "completed"
    assert [event["data"]["reason"] for event in of_type(await again.events(run_id), "run_resumed")] == ["drain"]


async def test_a_second_ctrl_c_ends_workers_that_take_their_time(
    database_url: str, settings: Settings, serve: Serve
) -> None:
    """Seen to fail without the kill on a second SIGINT."""
    environment = settings(DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DELAY_S=FOR_EVER_S, SHUTDOWN_GRACE_S="3600")
    service = serve(environment).ready()
    pids = workers_of(service.pid)
    service.terminate()
    await holds(lambda: service.stderr().count("stopping") == 2, "both workers to stop")
    service.terminate()  # once more changes nothing
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=DEADLINE_S) as http:
        assert (await http.get("/readyz")).status_code == 503
    assert service.process.poll() is None
    service.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(service.ended) == 0
    assert all(gone(pid) for pid in pids)


async def test_a_service_with_a_worker_that_hangs_stops_all_the_same(
    database_url: str, settings: Settings, serve: Serve
) -> None:
    """Seen to fail without the kill at the end of the grace time."""
    service = serve(settings(DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_GRACE_S="2")).ready()
    pids = workers_of(service.pid)
    os.kill(pids[0], signal.SIGSTOP)
    service.terminate()
    assert await asyncio.to_thread(service.ended) == 0
    assert all(gone(pid) for pid in pids)


# A supervisor with less patience than the program's, of an application that does nothing.
_IMPATIENT = """
    import asyncio, socket, sys
    import uvicorn
    from app.cli.supervisor import Supervisor
    from app.telemetry.logs import configure_logging

    async def application(scope, receive, send):
        while (await receive())["type"] != "lifespan.shutdown":
            scope["state"]["drain"] = lambda: asyncio.create_task(asyncio.sleep(0))
            scope["state"]["under_way"] = lambda: 0
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    if __name__ == "__main__":
        configure_logging("console", "info")
        config = uvicorn.Config("impatient:application", lifespan="on", log_config=None, workers=1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            supervisor = Supervisor(
                config, [listener], lambda: print("ready", flush=True), delay_s=0, grace_s=5, answer_within_s=10
            )
            sys.exit(supervisor.run())
"""


async def test_a_worker_that_hangs_counts_as_dead(folder: Path) -> None:
    """Seen to fail without the kill of a worker that does not answer."""
    (folder / "impatient.py").write_text(textwrap.dedent(_IMPATIENT))
    out, err = folder / "out", folder / "err"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with out.open("wb") as stdout, err.open("wb") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "impatient.py"], cwd=folder, env=environment, stdout=stdout, stderr=stderr
        )
    try:
        await holds(lambda: "ready" in out.read_text(), "the worker to be ready")
        (worker,) = workers_of(parent.pid)
        os.kill(worker, signal.SIGSTOP)
        await holds(lambda: f"pid={worker}" in err.read_text(), "its death to be told")
        assert ("SIGKILL", "True", str(worker)) in [died[:3] for died in _DIED.findall(err.read_text())]
        await holds(lambda: len(workers_of(parent.pid)) == 1, "another worker")
        assert workers_of(parent.pid) != [worker]
    finally:
        parent.terminate()
        await asyncio.to_thread(parent.wait, STOP_S)
