"""The refund desk, as its README says that it is started and asked: subagents, an MCP server and a person's word."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.client import Client, Json, types_of
from tests.acceptance.conftest import Caller, Serve
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import finished
from tests.acceptance.service import ROOT
from tests.acceptance.teams import check_family, children_of
from tests.acceptance.waiting import eventually
from tests.model_server import Reply
from tests.processes import children_with

README = (ROOT / "examples" / "refund_desk" / "README.md").read_text()
SETTINGS: dict[str, str] = dict(re.findall(r"^([A-Z_]+)=(\S+) \\$", README, re.MULTILINE))
REQUEST: Json = json.loads(re.findall(r"/runs -H .* -d '(\{.*?\n\})'", README, re.DOTALL)[0])
REFUND = {"order_id": "A-1001", "amount_cents": 18900, "reason": "rule 1: arrived broken, confirmed by a photo"}
CHILDREN = ["order_researcher_offline", "policy_clerk_offline"]


@pytest.fixture
def environment(database_url: str, model: Model, tmp_path: Path) -> dict[str, str]:
    """The README's settings, with a database and a payment provider of the test's own."""
    assert set(SETTINGS) == {"AGENTS_DIR", "TOOL_MODULES", "POLICY_MODULES", "MCP_SERVERS_FILE"}
    return {
        **SETTINGS,
        "DATABASE_URL": database_url,
        "REFUNDS_DB": str(tmp_path / "refunds.sqlite3"),
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "the-key",
    }


async def connected(client: Client) -> Client:
    """Wait until the tools of the MCP server are listed, as its README says."""

    async def look() -> bool:
        tools = {tool["name"]: tool for tool in (await client.http.get("/tools")).json()["items"]}
        return {"orders__find_orders", "orders__get_order"} <= tools.keys() and all(
            (tool["effect"], tool["source"]) == ("read_only", "mcp")
            for name, tool in tools.items()
            if name.startswith("orders__")
        )

    await eventually(look, "the tools of the MCP server")
    return client


async def the_question(client: Client) -> Json:
    """The one that is in the inbox."""
    answer = await client.http.get("/interactions", params={"status": "pending"})
    (question,) = answer.json()["items"]
    return question


def paid(environment: dict[str, str]) -> list[tuple[str, int]]:
    """What the payment provider was made to pay."""
    if not Path(environment["REFUNDS_DB"]).exists():
        return []
    with closing(sqlite3.connect(environment["REFUNDS_DB"])) as database:
        return database.execute("SELECT order_id, amount_cents FROM refunds").fetchall()


async def test_a_large_refund_waits_for_a_person_over_a_kill_and_is_paid_once(
    environment: dict[str, str], serve: Serve, caller: Caller
) -> None:
    service = serve(environment, ROOT).ready()
    client = await connected(caller(service))
    assert children_with("-m examples.refund_desk.orders_server", service.pid)
    run = await client.create_and_wait(**REQUEST)
    question = await the_question(client)
    assert (run["status"], run["waiting_for"]) == (
        "waiting",
        [{"kind": "interaction", "id": question["interaction_id"]}],
    )
    assert (question["run_id"], question["tool_name"]) == (run["run_id"], "pay_refund")
    assert (question["arguments"], question["reason"]) == (REFUND, "a refund of more than EUR 100 needs a person")
    await check_what_the_children_did(client, run["run_id"])
    assert paid(environment) == []

    service.kill()
    client = await connected(caller(serve(environment, ROOT).ready()))
    await client.decide(question, "approve", decided_by="Ann")
    done = await finished(client, run["run_id"])
    await check_family(client, done)
    assert (done["status"], paid(environment)) == ("completed", [("A-1001", 18900)])
    assert done["result"]["tool_executions"][-1]["output"] == {
        "order_id": "A-1001", "refunded_cents": 18900, "reason": REFUND["reason"],
    }  # fmt: skip
    assert '"refunded_cents":18900' in done["result"]["final_text"]

    again = await client.create_and_wait(**REQUEST)
    await client.decide(await the_question(client), "approve")
    again = await finished(client, again["run_id"])
    assert (again["status"], paid(environment)) == ("completed", [("A-1001", 18900)])
    assert "was refunded before" in again["result"]["tool_executions"][-1]["error"]


async def check_what_the_children_did(client: Client, run_id: str) -> None:
    """Both are done, and each call is on record with what its real tool gave and with its place in the family."""
    children = [await client.get(child["run_id"]) for child in await children_of(client, run_id)]
    assert [(child["agent_name"], child["status"]) for child in children] == [(name, "completed") for name in CHILDREN]
    assert {child["parent_run_id"] for child in children} == {run_id}
    executions = [call for child in children for call in child["result"]["tool_executions"]]
    assert [(call["tool_name"], call["success"], call["agent_depth"], call["agent_path"]) for call in executions] == [
        ("orders__find_orders", True, 1, "refund_desk_offline>order_researcher_offline"),
        ("orders__get_order", True, 1, "refund_desk_offline>order_researcher_offline"),
        ("read_refund_policy", True, 1, "refund_desk_offline>policy_clerk_offline"),
    ]
    found, order, rules = (call["output"] for call in executions)
    assert set(found) == {"A-1001", "A-0987"}
    assert (order["email"], order["paid_cents"]) == ("mara@example.com", REFUND["amount_cents"])
    assert "1. Arrived broken: the whole price" in rules


async def test_a_reader_of_all_three_runs_sees_the_refund_denied_and_nothing_is_paid(
    environment: dict[str, str], serve: Serve, caller: Caller
) -> None:
    client = await connected(caller(serve(environment, ROOT).ready()))
    run_id = (await client.create(**REQUEST))["run_id"]
    own: list[Json] = []
    below: dict[str, list[Json]] = {name: [] for name in CHILDREN}
    async with client.stream(run_id, subagents=True, deltas=False) as events:
        async for sent in events:
            if sent.type == "subagent_event":
                below[sent.event["agent_name"]].append(sent.event["data"]["event"])
                continue
            own.append(sent.event)
            if sent.type == "interaction_requested":
                question = await the_question(client)
                await client.decide(question, "deny", reason="the photo shows another machine", decided_by="Ann")
    done = await finished(client, run_id)
    assert (done["status"], paid(environment)) == ("completed", [])
    assert "a person denied this call: the photo shows another machine" in done["result"]["final_text"]
    kinds = types_of(own)
    assert kinds == types_of(await client.events(run_id))
    assert kinds[kinds.index("policy_decision") :] == [
        "policy_decision", "interaction_requested", "run_waiting", "interaction_resolved", "run_resumed",
        "tool_completed", "step_started", "llm_called", "llm_completed", "run_completed",
    ]  # fmt: skip
    assert (kinds.count("subagent_started"), kinds.count("subagent_completed")) == (2, 2)
    for child in await children_of(client, run_id):
        assert types_of(below[child["agent_name"]]) == types_of(await client.events(child["run_id"]))
        assert below[child["agent_name"]][-1]["type"] == "run_completed"


async def test_with_a_model_the_customer_is_known_to_all_who_need_it_and_a_small_refund_needs_nobody(
    environment: dict[str, str], serve: Serve, caller: Caller, model: Model
) -> None:
    client = await connected(caller(serve(environment, ROOT).ready()))
    refund = {"order_id": "A-0987", "amount_cents": 300, "reason": "rule 3"}
    model.script(
        calls(("delegate_to_order_researcher", {"task": "The descaler came late."})),
        calls(("orders__get_order", {"order_id": "A-0987"})),
        Reply(text="It took 16 days."),
        calls(("delegate_to_policy_clerk", {"task": "Delivered after 16 days."})),
        calls(("read_refund_policy", {})),
        Reply(text="Rule 3."),
        calls(("pay_refund", refund)),
        Reply(text="You get EUR 3.00."),
    )
    done = await client.create_and_wait(**{**REQUEST, "agent": "refund_desk"})
    assert (done["status"], done["result"]["final_text"]) == ("completed", "You get EUR 3.00.")
    assert paid(environment) == [("A-0987", 300)]
    desk, researcher, *_ = model.requests()
    assert all("mara@example.com" in request["messages"][0]["content"] for request in (desk, researcher))
    offered = [[tool["function"]["name"] for tool in request["tools"]] for request in (desk, researcher)]
    assert offered == [
        ["pay_refund", "delegate_to_order_researcher", "delegate_to_policy_clerk"],
        ["orders__find_orders", "orders__get_order"],
    ]
