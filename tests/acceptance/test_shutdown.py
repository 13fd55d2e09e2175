"""SIGTERM: a replica leaves, its runs do not."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.acceptance.client import an_agent, check_log, of_type, problem
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.model_server import Reply

# Two seconds of it are for what comes after the runs were given back.
GRACE_S = 4


async def test_a_replica_that_is_told_to_stop_gives_its_runs_to_another(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    environment = settings(DATABASE_URL=database_url, SHUTDOWN_GRACE_S=str(GRACE_S))
    leaving, staying = (service.ready() for service in [serve(environment), serve(environment)])
    a, b = caller(leaving), caller(staying)
    model.script(calls(("send", {"gate": gate.name})))
    with_tool = (await a.create(agent=an_agent(), input="Use a tool."))["run_id"]
    await gate.entered()
    model.script(SILENT)
    with_model = (await a.create(agent=an_agent(), input="Ask the model."))["run_id"]
    await model.asked(2)
    reader = asyncio.create_task(a.streamed(with_model))
    waiter = asyncio.create_task(a.http.get(f"/runs/{with_model}/wait", params={"timeout_s": 60}))
    slow = {"agent": an_agent(model="openai/slow-60"), "input": "Go."}
    creator = asyncio.create_task(a.http.post("/runs/wait", json=slow))
    await model.asked(3)

    model.script(*[Reply(text="Finished elsewhere.")] * 3)
    began = time.monotonic()
    leaving.terminate()
    for answer in await asyncio.gather(waiter, creator):
        problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
    gate.open()
    seen = await reader
    assert [sent.type for sent in seen] == ["run_started", "step_started", "llm_called"]
    assert leaving.ended() == 0
    assert time.monotonic() - began < GRACE_S

    for run_id in (with_tool, with_model):
        done = await b.wait(run_id)
        assert (done["status"], done["result"]["final_text"]) == ("completed", "Finished elsewhere.")
        events = await b.events(run_id)
        check_log(events, done)
        assert [event["data"]["reason"] for event in of_type(events, "run_resumed")] == ["drain"]
    assert [call["pid"] for call in gate.calls()] == [leaving.pid]
    rest = await b.streamed(with_model, last_id=seen[-1].id)
    assert [sent.event for sent in [*seen, *rest]] == await b.events(with_model)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_service_that_is_stopped_and_started_again_finishes_its_runs(
    workers: str, database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(DATABASE_URL=database_url, WORKERS=workers, SHUTDOWN_GRACE_S="3")
    service = serve(environment).ready()
    model.script(SILENT)
    run_id = (await caller(service).create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    service.terminate()
    assert service.ended() == 0
    assert "Traceback" not in service.stderr()
    model.script(Reply(text="Back again."))
    again = caller(serve({**environment, "WORKERS": "1"}).ready())
    done = await again.wait(run_id)
    assert (done["status"], done["result"]["final_text"], done["attempt"]) == ("completed", "Back again.", 2)
