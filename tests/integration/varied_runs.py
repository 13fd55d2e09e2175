"""One run of every kind, made by real services of which one was killed; each is on a thread named after what it is."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.acceptance.client import Client, Json, an_agent
from tests.acceptance.gates import Gates
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import judged, look_up, pending, rule
from tests.acceptance.service import Service
from tests.acceptance.teams import WORKER, Team, at_once, child_of, put_team, steps, through
from tests.conftest import database_of
from tests.model_server import Reply

LOCATE: Json = {
    "type": "caller",
    "name": "locate",
    "description": "Where the user is.",
    "parameters": {"type": "object", "properties": {}},
}
STUCK: Json = {"name": "stuck", "model": "openai/slow-60"}
DONE = Reply(text="Done.")


@contextmanager
def varied_database(server_url: str, name: str) -> Iterator[str]:
    """The URL of a database of that name with all of them; nobody is at work there any more."""
    asyncio.run(execute(server_url, f"CREATE DATABASE {name} TEMPLATE template_runs"))
    url = database_of(server_url, name)
    runs = VariedRuns(url, Path(tempfile.mkdtemp(prefix="agent-runner-gates-", dir="/tmp")))
    try:
        asyncio.run(runs.make())
        yield url
    finally:
        runs.close()
        asyncio.run(execute(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    """One statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


class VariedRuns:
    """Makes the runs, and kills what is still under way."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._url = database_url
        self._gates = Gates(folder)
        self._model = Model()
        self._services: list[Service] = []

    async def make(self) -> None:
        """All of them. Some are over, some wait, some are under way in a process that is dead by now."""
        doomed = self._serve()
        async with Client(doomed.url) as client:
            await self._crashed(client, doomed)
        async with Client(self._serve().url) as client:
            await client.until(await self._run_of("crashed"), "completed")
            await self._answered(client)
            await self._waiting(client)
            await self._steered(client)
            await self._families(client)
            await self._on_threads(client)
        for service in self._services:
            service.kill()
        await self._trim()

    def close(self) -> None:
        for service in self._services:
            service.stop()
        self._model.close()
        self._gates.remove()

    def _serve(self) -> Service:
        self._services.append(
            Service(
                {
                    "DATABASE_URL": self._url,
                    "OPENAI_BASE_URL": self._model.base_url,
                    "OPENAI_API_KEY": "a-key",
                    "TOOL_MODULES": "tests.acceptance.tools",
                    "GATES_DIR": str(self._gates.folder),
                    "LEASE_S": "2",
                }
            )
        )
        return self._services[-1].ready()

    async def _crashed(self, client: Client, doomed: Service) -> None:
        gate = self._gates.new()
        await client.create(agent={"name": "crasher", **WORKER}, input=through(gate), thread_id="crashed")
        await gate.entered()
        doomed.kill()
        gate.open()

    async def _answered(self, client: Client) -> None:
        """Runs that end by themselves: well, with texts that are hard to read, at a limit, and in failures."""
        asked = steps([("lookup", {"word": "a"}), ("fail", {"reason": "b"})], [("lookup", {"word": "c"})])
        await client.create_and_wait(agent={"name": "whole", **WORKER}, input=asked, thread_id="whole")
        self._model.script(calls(("lookup", {"word": "\0"}), text="\0 is \\u0000"), Reply(text=["a \0", "\\\0"]))
        await client.create_and_wait(agent=an_agent(), input="Go.", thread_id="odd")
        await client.create_and_wait(
            agent={"name": "streams", "model": "openai/stream-100"}, input="Go.", thread_id="trimmed"
        )
        await client.create_and_wait(agent={"name": "echo", "model": "openai/echo"}, input="Go.", thread_id="cut")
        limited = {"name": "limited", **WORKER, "limits": {"max_tool_calls": 1}, "on_limit": "degrade"}
        assert (await client.create_and_wait(agent=limited, input=asked, thread_id="limited"))["status"] == "degraded"
        await client.create_and_wait(agent={"name": "echo", "model": "openai/echo"}, input="And?", thread_id="limited")
        broken = {"name": "broken", "model": "openai/error-400"}
        run = await client.create_and_wait(agent=broken, input="Go.", thread_id="broken")
        await client.steer("resume", run["run_id"])
        await client.wait(run["run_id"])
        strict = {"name": "strict", **WORKER, "tool_failure_policy": "fail"}
        run = await client.create_and_wait(agent=strict, input=asked, thread_id="forgiven")
        assert run["status"] == "failed", run
        await client.steer("resume", run["run_id"])
        assert (await client.wait(run["run_id"]))["status"] == "completed"
        await client.create_and_wait(agent=broken, input="Go.", thread_id="deleted")
        gone = await client.http.delete(f"/runs/{await self._run_of('deleted')}")
        assert gone.status_code == 204, gone.text

    async def _waiting(self, client: Client) -> None:
        agent = judged(rule("request_approval", "lookup"))
        self._model.script(look_up("a"), DONE)
        run = await client.create_and_wait(agent=agent, input="Go.", thread_id="asked")
        await client.decide(await pending(client, run["run_id"]), "approve")
        await client.until(run["run_id"], "completed")
        for thread_id in ("asking", "cancelled", "paused-while-asking"):
            self._model.script(look_up("a"))
            run = await client.create_and_wait(agent=agent, input="Go.", thread_id=thread_id)
        await client.steer("pause", run["run_id"])
        await client.decide(await pending(client, run["run_id"]), "deny")
        await client.steer("cancel", await self._run_of("cancelled"))
        self._model.script(calls(("locate", {})))
        await client.create_and_wait(
            agent=an_agent(tool_definitions=[LOCATE]), input="Where am I?", thread_id="locating"
        )

    async def _steered(self, client: Client) -> None:
        gate = self._gates.new()
        agent = {"name": "steered", **WORKER}
        paused = await client.create(agent=agent, input=through(gate), thread_id="paused")
        stopped = await client.create(agent=agent, input=through(gate), thread_id="interrupted")
        await gate.entered(2)
        await client.steer("interrupt", stopped["run_id"])
        await client.steer("pause", paused["run_id"])
        gate.open()
        left = await client.create(agent=STUCK, input="Go.", thread_id="stopped")
        await client.steer("interrupt", left["run_id"])
        await client.until(paused["run_id"], "paused")
        await client.steer("resume", stopped["run_id"])
        await client.until(stopped["run_id"], "completed")

    async def _families(self, client: Client) -> None:
        team: Team = await put_team(client, "team", leaf=WORKER)
        gate = self._gates.new()
        asked = at_once(team.ask("leaf", at_once(("lookup", {"word": "a"}))), team.ask("leaf"))
        done = await client.create(agent=team.parent(), input=asked, thread_id="family")
        await client.until(done["run_id"], "completed")
        run = await client.create(
            agent=team.parent(), input=at_once(team.ask("leaf", through(gate))), thread_id="delegating"
        )
        await child_of(client, run["run_id"])
        await gate.entered()
        await client.until(run["run_id"], "waiting")

    async def _on_threads(self, client: Client) -> None:
        """Runs in line, later ones, one that was taken back, and copies of threads."""
        await client.create(agent=STUCK, input="I hold it.", thread_id="line")
        first = await client.create(agent=STUCK, input="I am next.", thread_id="line")
        await client.create(agent=STUCK, input="And I.", thread_id="line")
        third = await client.create(agent=STUCK, input="Not now.", thread_id="line")
        await client.steer("pause", third["run_id"])
        assert first["status"] == "queued"
        await client.create(agent=STUCK, input="Late.", thread_id="scheduled", start_after="2100-01-01T00:00:00Z")
        gate = self._gates.new()
        await client.create(agent={"name": "taken", **WORKER}, input=through(gate), thread_id="rolled-back")
        await gate.entered()
        echo = {"name": "echo", "model": "openai/echo"}
        instead = await client.create(agent=echo, input="Me.", thread_id="rolled-back", on_busy_thread="rollback")
        await client.until(instead["run_id"], "completed")
        gate.open()
        for seq in (2, 3, 7):
            await self._post(client, "/threads/whole/copy", {"thread_id": f"copy-up-to-{seq}", "up_to_seq": seq})
        await self._post(client, "/threads/by-hand/messages", {"role": "assistant", "content": "Said by hand."})
        await self._purged(client)

    async def _purged(self, client: Client) -> None:
        """Runs of which a purge has removed all, the beginning, and nothing; and a call whose result came after it."""
        agent = {"name": "purged", **WORKER}
        asked = steps([("lookup", {"word": "a"})], [("lookup", {"word": "b"})], [("lookup", {"word": "c"})])
        for _ in range(2):
            await client.create_and_wait(agent=agent, input=asked, thread_id="purged")
        await self._purge(client, "purged", keep_last=5)
        await client.create_and_wait(agent=agent, input=asked, thread_id="purged")
        gate = self._gates.new()
        run = await client.create(agent=agent, input=through(gate), thread_id="purged-while-open")
        await gate.entered()
        await client.steer("interrupt", run["run_id"])
        await self._post(client, "/threads/purged-while-open/messages", {"role": "user", "content": "Meanwhile."})
        await self._purge(client, "purged-while-open", keep_last=1)
        gate.open()
        await client.steer("resume", run["run_id"])
        await client.wait(run["run_id"])

    async def _purge(self, client: Client, thread_id: str, keep_last: int) -> None:
        self._model.script(Reply(text="A."))
        body = {"keep_last": keep_last, "purge": True, "model": "openai/gpt-4o-mini"}
        answer = await client.http.post(f"/threads/{thread_id}/compact", json=body)
        assert answer.status_code == 200, answer.text

    async def _post(self, client: Client, path: str, body: dict[str, Any]) -> None:
        answer = await client.http.post(path, json=body)
        assert answer.status_code == 201, answer.text

    async def _trim(self) -> None:
        """What retention leaves of old runs: a log without its deltas, and one of which only the end is left."""
        connection = await asyncpg.connect(self._url)
        trimmed, cut = await self._run_of("trimmed"), await self._run_of("cut")
        async with connection.transaction():
            await connection.execute("DELETE FROM run_events WHERE run_id = $1::uuid AND type = 'text_delta'", trimmed)
            await connection.execute("UPDATE runs SET deltas_trimmed = true WHERE run_id = $1::uuid", trimmed)
            await connection.execute("UPDATE runs SET first_seq = last_seq WHERE run_id = $1::uuid", cut)
            await connection.execute(
                "DELETE FROM run_events e USING runs r WHERE r.run_id = $1::uuid AND e.run_id = r.run_id "
                "AND e.seq < r.first_seq",
                cut,
            )
        await connection.close()

    async def _run_of(self, thread_id: str) -> str:
        connection = await asyncpg.connect(self._url)
        try:
            return str(await connection.fetchval("SELECT run_id FROM runs WHERE thread_id = $1", thread_id))
        finally:
            await connection.close()
