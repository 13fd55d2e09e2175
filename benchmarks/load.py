"""The load driver: sends one workload's runs, so many at once, and looks whether each did what it should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from benchmarks.workloads import Workload

REQUEST_TIMEOUT_S = 60.0
_MAX_ERRORS = 20
_INPUT = "What is the weather in Bern?"


class WrongAnswer(Exception):
    """A run did not end as its workload says."""


@dataclass(slots=True)
class Outcome:
    """What a load brought. Latencies in seconds, of the runs that were right."""

    elapsed_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list[float])
    first_tokens_s: list[float] = field(default_factory=list[float])
    errors: list[str] = field(default_factory=list[str])


class LoadDriver:
    """Sends runs to one service.

    Args:
        url: the service's address, `http://host:port`.
        clock: monotonic seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._url = url
        self._clock = clock

    async def drive(self, workload: Workload, runs: int, *, limit_s: float) -> Outcome:
        """Send `runs` of a workload, as many at once as it says; each with a thread of its own.

        Ends early where runs keep going wrong, or after `limit_s` seconds; both are in the outcome's errors.
        """
        outcome = Outcome()
        begun = self._clock()
        try:
            async with asyncio.timeout(limit_s), self._session(workload) as session:
                places = iter(range(runs))
                async with asyncio.TaskGroup() as senders:
                    for _ in range(min(workload.concurrency, runs)):
                        senders.create_task(self._send_while(session, workload, places, outcome))
        except TimeoutError:
            outcome.errors.append(f"not finished after {limit_s:g} s")
        outcome.elapsed_s = self._clock() - begun
        return outcome

    def _session(self, workload: Workload) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self._url,
            connector=aiohttp.TCPConnector(limit=workload.concurrency),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json"},
        )

    async def _send_while(
        self, session: aiohttp.ClientSession, workload: Workload, places: Any, outcome: Outcome
    ) -> None:
        body = orjson.dumps({"agent": workload.name, "input": _INPUT})
        for _ in places:
            if len(outcome.errors) >= _MAX_ERRORS:
                return
            begun = self._clock()
            try:
                async with session.post(workload.path, data=body) as response:
                    if response.status != 200:
                        raise WrongAnswer(f"{response.status}: {(await response.text())[:300]}")
                    first_token_s = await self._take(response, workload, begun)
            except (WrongAnswer, aiohttp.ClientError, TimeoutError, OSError) as error:
                outcome.errors.append(str(error) or type(error).__name__)
                continue
            outcome.latencies_s.append(self._clock() - begun)
            if first_token_s is not None:
                outcome.first_tokens_s.append(first_token_s)

    async def _take(self, response: aiohttp.ClientResponse, workload: Workload, begun: float) -> float | None:
        """Read an answer to its end and check it; the seconds to the first token, of a stream."""
        if not workload.streams:
            check_run(orjson.loads(await response.read()), workload)
            return None
        first_token_s: float | None = None
        received = bytearray()
        async for piece in response.content.iter_any():
            received += piece
            if first_token_s is None and b"event: text_delta\n" in received:
                first_token_s = self._clock() - begun
        check_stream(bytes(received), workload)
        return first_token_s


def check_run(run: dict[str, Any], workload: Workload) -> None:
    """Raises WrongAnswer unless the run completed with the text and the tool calls of its workload."""
    if run["status"] != "completed":
        raise WrongAnswer(f"the run is {run['status']}: {run['error']}")
    result = run["result"]
    if result["final_text"] != workload.final_text:
        raise WrongAnswer(f"the run ended with {result['final_text']!r}")
    succeeded = sum(execution["success"] for execution in result["tool_executions"])
    if succeeded != workload.tool_calls or len(result["tool_executions"]) != succeeded:
        raise WrongAnswer(f"{succeeded} tool calls succeeded: {result['tool_executions']}")


def check_stream(received: bytes, workload: Workload) -> None:
    """Raises WrongAnswer unless the events are numbered from 1 on, end with the run's end, and their deltas make up
    the final text."""
    events = [orjson.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: ")]
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        raise WrongAnswer(f"events are missing or out of order: {[event['seq'] for event in events]}")
    last = events[-1] if events else {"type": "nothing", "data": {}}
    if last["type"] != "run_completed":
        raise WrongAnswer(f"the stream ended with {last['type']}: {last['data']}")
    joined = "".join(event["data"]["delta"] for event in events if event["type"] == "text_delta")
    if not joined == last["data"]["final_text"] == workload.final_text:
        raise WrongAnswer(f"the deltas make up {joined!r}, the final text is {last['data']['final_text']!r}")
