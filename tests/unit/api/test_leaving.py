"""What becomes of a run when the caller that waits for it goes away."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from fastapi import FastAPI

from app.engine.ownership import Created
from app.engine.records import OnDisconnect
from app.engine.store_errors import StoreUnavailable
from tests.unit.api.asgi import Caller
from tests.unit.api.conftest import StubServices
from tests.unit.api.records import RUN_ID, a_run

BODY = orjson.dumps({"agent": "helper", "input": "hello"})


class Runs:
    """A run without an end, and what was done to it."""

    def __init__(self, on_disconnect: OnDisconnect) -> None:
        self._run = a_run(on_disconnect=on_disconnect)
        self.waiting = asyncio.Event()
        self.given_up = asyncio.Event()
        self.cancelled: list[str] = []
        self.unavailable = False

    def stays(self) -> None:
        """This replica does not stop."""

    async def create(self, command: Any, key: Any) -> Created:
        return Created(self._run)

    async def wait(self, run_id: str, timeout_s: float, **_: Any) -> Any:
        return await self.nothing()

    async def nothing(self) -> Any:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()

    async def cancel(self, run_id: str) -> Any:
        self.cancelled.append(run_id)
        if self.unavailable:
            raise StoreUnavailable("down")


def _serve(services: StubServices, on_disconnect: OnDisconnect) -> Runs:
    runs = Runs(on_disconnect)

    class Streams:
        async def open_run(self, *_: Any, **__: Any) -> Any:
            async def events() -> Any:
                await runs.nothing()
                yield

            return events()

    services.runs, services.streams = runs, Streams()
    return runs


@pytest.mark.parametrize("path", ["/runs/wait", "/runs/stream"])
@pytest.mark.parametrize(("on_disconnect", "cancelled"), [(OnDisconnect.CONTINUE, []), (OnDisconnect.CANCEL, [RUN_ID])])
async def test_a_run_ends_with_its_caller_only_if_it_was_asked_to(
    app: FastAPI, services: StubServices, path: str, on_disconnect: OnDisconnect, cancelled: list[str]
) -> None:
    runs = _serve(services, on_disconnect)
    caller = Caller(app, "POST", path, BODY)
    await caller.until(runs.waiting.wait())
    caller.go_away()
    await caller.task
    assert runs.given_up.is_set()
    assert runs.cancelled == cancelled


@pytest.mark.parametrize("path", ["/runs/wait", "/runs/stream"])
async def test_a_cancel_that_fails_is_not_the_end_of_the_service(
    app: FastAPI, services: StubServices, path: str
) -> None:
    runs = _serve(services, OnDisconnect.CANCEL)
    runs.unavailable = True
    caller = Caller(app, "POST", path, BODY)
    await caller.until(runs.waiting.wait())
    caller.go_away()
    await caller.task
    assert runs.cancelled == [RUN_ID]


@pytest.mark.parametrize("path", [f"/runs/{RUN_ID}/wait", f"/runs/{RUN_ID}/events"])
async def test_a_mere_reader_ends_nothing(app: FastAPI, services: StubServices, path: str) -> None:
    runs = _serve(services, OnDisconnect.CANCEL)
    caller = Caller(app, "GET", path)
    await caller.until(runs.waiting.wait())
    caller.go_away()
    await caller.task
    assert runs.given_up.is_set()
    assert runs.cancelled == []


async def test_a_wait_leaves_no_task_behind(app: FastAPI, services: StubServices) -> None:
    class Quick:
        async def wait(self, run_id: str, timeout_s: float, **_: Any) -> Any:
            return a_run()

    services.runs = Quick()
    before = asyncio.all_tasks()
    caller = Caller(app, "GET", f"/runs/{RUN_ID}/wait")
    await caller.task
    assert caller.status == 200
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_timeout_of_the_service_is_not_taken_for_a_caller_that_left(
    app: FastAPI, services: StubServices
) -> None:
    class Late:
        async def wait(self, run_id: str, timeout_s: float, **_: Any) -> Any:
            raise TimeoutError("of something else")

    services.runs = Late()
    caller = Caller(app, "GET", f"/runs/{RUN_ID}/wait")
    await caller.task
    assert caller.status == 500


async def test_a_service_that_is_stopped_cancels_no_run(app: FastAPI, services: StubServices) -> None:
    runs = _serve(services, OnDisconnect.CANCEL)
    caller = Caller(app, "POST", "/runs/stream", BODY)
    await caller.until(runs.waiting.wait())
    caller.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller.task
    assert runs.given_up.is_set()
    assert runs.cancelled == []
