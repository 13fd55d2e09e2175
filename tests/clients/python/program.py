"""A client in Python that knows the OpenAPI document and nothing else.

Its types are checked by `make clients`; with SERVICE_URL set it also runs.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
import uuid
from typing import TypeVar

from agent_runner_client import Client
from agent_runner_client.api.agents import put_agent
from agent_runner_client.api.events import list_run_events
from agent_runner_client.api.runs import create_run_and_wait, get_run, list_runs
from agent_runner_client.api.threads import append_message, list_messages
from agent_runner_client.models import (
    Agent,
    AgentPut,
    EventPage,
    Limits,
    Message,
    MessageAppend,
    MessageAppendRole,
    MessagePage,
    Problem,
    ProblemCode,
    Role,
    Run,
    RunCompletedEvent,
    RunCreate,
    RunCreateMetadata,
    RunPage,
    RunStatus,
)

T = TypeVar("T")


def must(answer: object, kind: type[T]) -> T:
    """The answer, if it is what was asked for."""
    if not isinstance(answer, kind):
        raise SystemExit(f"expected {kind.__name__}, got {answer!r}")
    return answer


def main(url: str) -> None:
    with Client(base_url=url) as client:
        settings = AgentPut(model="demo/echo", limits=Limits(max_steps=2))
        agent = must(put_agent.sync(client=client, name="python", body=settings), Agent)

        metadata = RunCreateMetadata.from_dict({"from": "python"})
        body = RunCreate(agent=f"python@{agent.version}", input_="hello", metadata=metadata)
        key = str(uuid.uuid4())
        run = must(create_run_and_wait.sync(client=client, body=body, idempotency_key=key, timeout_s=60), Run)
        again = must(create_run_and_wait.sync(client=client, body=body, idempotency_key=key), Run)
        assert again.run_id == run.run_id
        assert run.status is RunStatus.COMPLETED
        assert run.result is not None
        assert run.result.total_cost_usd == 0

        events = must(list_run_events.sync(client=client, run_id=run.run_id, limit=100), EventPage)
        end = must(events.items[-1], RunCompletedEvent)
        assert end.data.final_text == run.result.final_text == "hello"

        listed = must(list_runs.sync(client=client, metadata=["from:python"], limit=1), RunPage)
        assert [item.run_id for item in listed.items] == [run.run_id]

        added = MessageAppend(role=MessageAppendRole.USER, content="more")
        must(append_message.sync(client=client, thread_id=run.thread_id, body=added), Message)
        messages = must(list_messages.sync(client=client, thread_id=run.thread_id), MessagePage)
        assert [message.role for message in messages.items] == [Role.USER, Role.ASSISTANT, Role.USER]

        missing = must(get_run.sync(client=client, run_id="none"), Problem)
        assert missing.code is ProblemCode.NOT_FOUND


if __name__ == "__main__" and "SERVICE_URL" in os.environ:
    main(os.environ["SERVICE_URL"])
