"""Threads: what a run is told of those before it, and who goes when several want the same thread."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from tests.acceptance.client import Client, Json, an_agent, problem, types_of
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.model_server import Reply


async def a_holder(client: Client, model: Model, thread_id: str) -> Json:
    """A run that has the thread and is in a long model call."""
    asked = len(model.requests())
    model.script(SILENT)
    holder = await client.create(agent=an_agent(), input="I hold it.", thread_id=thread_id)
    await model.asked(asked + 1)
    return holder


def said(messages: list[Json]) -> list[str]:
    """What the user said in a model request."""
    return [message["content"] for message in messages if message["role"] == "user"]


async def test_a_run_sees_the_thread_with_its_tool_calls_and_their_ids(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    model.script(calls(("lookup", {"word": "ada"}), text="Looking."), Reply(text="Three letters."), Reply(text="I do."))
    agent = an_agent(instructions="Be kind.")
    await clients[0].create_and_wait(agent=agent, input="How long is ada?", thread_id=agent_name)
    await clients[1].create_and_wait(agent=agent, input="Do you remember?", thread_id=agent_name)
    system, asked, called, result, answered, asked_again = model.messages()
    assert (system["role"], system["content"].endswith("Be kind.")) == ("system", True)
    assert (asked["role"], asked["content"]) == ("user", "How long is ada?")
    assert (called["role"], called["content"]) == ("assistant", "Looking.")
    (call,) = called["tool_calls"]
    assert (call["type"], call["function"]["name"], call["id"]) == ("function", "lookup", result["tool_call_id"])
    assert (result["role"], "letters" in result["content"]) == ("tool", True)
    assert (answered["role"], answered["content"]) == ("assistant", "Three letters.")
    assert asked_again["content"] == "Do you remember?"

    kept = await clients[0].messages(agent_name)
    roles = ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [message["role"] for message in kept] == roles  # the agent's own system message is not one of them
    assert kept[1]["tool_calls"] == [{"id": call["id"], "name": "lookup", "arguments": {"word": "ada"}}]
    assert kept[2]["tool_call_id"] == call["id"]


async def test_ids_that_the_model_repeats_are_made_unique_within_a_run(client: Client, model: Model) -> None:
    once = calls(("lookup", {"word": "a"}))
    model.script(once, once, Reply(text="Twice."))
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    ids = [tool["tool_call_id"] for tool in run["result"]["tool_executions"]]
    assert len(set(ids)) == 2
    assert [message["tool_call_id"] for message in model.messages() if message["role"] == "tool"] == ids


async def test_runs_that_wait_for_a_thread_go_in_the_order_in_which_they_came(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    holder = await a_holder(clients[0], model, agent_name)
    line = [
        await clients[number % 2].create(agent=an_agent(), input=f"Number {number}.", thread_id=agent_name)
        for number in range(5)
    ]
    assert [run["status"] for run in line] == ["queued"] * 5
    model.script(*(Reply(text=f"Answer {number}.") for number in range(5)))
    await clients[0].steer("cancel", holder["run_id"])
    done = [await clients[0].wait(run["run_id"]) for run in line]
    assert [run["result"]["final_text"] for run in done] == [f"Answer {number}." for number in range(5)]
    assert said(model.messages()) == ["I hold it.", *(f"Number {number}." for number in range(5))]
    for earlier, later in pairwise(done):
        assert earlier["finished_at"] <= later["started_at"]


async def test_runs_that_come_at_once_never_have_the_thread_together(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    body = {"agent": an_agent(model="openai/echo"), "thread_id": agent_name}
    waits = [clients[number % 2].create_and_wait(**body, input=f"{number}") for number in range(12)]
    done = sorted(await asyncio.gather(*waits), key=lambda run: run["started_at"])
    assert [run["result"]["final_text"] for run in done] == [run["input"] for run in done]
    for earlier, later in pairwise(done):
        assert earlier["finished_at"] <= later["started_at"]
    kept = await clients[0].messages(agent_name)
    assert [message["content"] for message in kept] == [run["input"] for run in done for _ in range(2)]


async def test_reject_refuses_a_run_while_the_thread_is_held(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    await a_holder(clients[0], model, agent_name)
    body = {"agent": an_agent(), "input": "Now.", "thread_id": agent_name, "on_busy_thread": "reject"}
    problem(await clients[1].http.post("/runs", json=body), 409, "thread_busy")
    runs = (await clients[1].http.get(f"/threads/{agent_name}/runs")).json()["items"]
    assert len(runs) == 1


async def test_interrupt_ends_the_holder_and_goes_before_those_in_line(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    holder = await a_holder(clients[0], model, agent_name)
    body = {"agent": an_agent(), "thread_id": agent_name}
    waiting = await clients[0].create(**body, input="I wait.")
    model.script(Reply(text="First."), Reply(text="Second."))
    urgent = await clients[1].create(**body, input="At once!", on_busy_thread="interrupt")
    assert (await clients[1].wait(urgent["run_id"]))["result"]["final_text"] == "First."
    assert (await clients[1].wait(waiting["run_id"]))["result"]["final_text"] == "Second."
    ended = await clients[0].get(holder["run_id"])
    assert (ended["status"], ended["result"]["state"]) == ("interrupted", "interrupted")
    assert types_of(await clients[0].events(holder["run_id"]))[-1] == "run_interrupted"
    await model.saw_hang_up()
    assert said(model.messages()) == ["I hold it.", "At once!", "I wait."]


async def test_rollback_cancels_the_holder_and_takes_its_messages_out(
    clients: tuple[Client, Client], model: Model, agent_name: str, gate: Gate
) -> None:
    gate.open()
    model.script(calls(("send", {"gate": gate.name})), SILENT)
    body = {"agent": an_agent(), "thread_id": agent_name}
    holder = await clients[0].create(**body, input="Forget me.")
    await model.asked(2)
    assert len(await clients[0].messages(agent_name)) == 3
    model.script(Reply(text="Who?"))
    instead = await clients[1].create(**body, input="Do you remember?", on_busy_thread="rollback")
    assert (await clients[1].wait(instead["run_id"]))["status"] == "completed"
    assert (await clients[0].get(holder["run_id"]))["status"] == "cancelled"
    assert [message["role"] for message in model.messages()] == ["system", "user"]
    assert said(model.messages()) == ["Do you remember?"]
    assert [message["content"] for message in await clients[0].messages(agent_name)] == ["Do you remember?", "Who?"]


async def test_a_message_appended_during_a_run_is_seen_from_its_next_model_call(
    clients: tuple[Client, Client], model: Model, agent_name: str, gate: Gate
) -> None:
    model.script(calls(("read", {"gate": gate.name})), Reply(text="Tea, then."))
    run = await clients[0].create(agent=an_agent(), input="Coffee, please.", thread_id=agent_name)
    await gate.entered()
    body = {"role": "user", "content": "No, tea!"}
    appended = await clients[1].http.post(f"/threads/{agent_name}/messages", json=body)
    assert appended.status_code == 201, appended.text
    gate.open()
    assert (await clients[0].wait(run["run_id"]))["status"] == "completed"
    first, second = model.requests()
    assert said(first["messages"]) == ["Coffee, please."]
    assert said(second["messages"]) == ["Coffee, please.", "No, tea!"]
    roles = [message["role"] for message in second["messages"]]
    assert roles.index("tool") == roles.index("assistant") + 1  # nothing stands between a call and its result
