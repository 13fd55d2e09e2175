"""Runs whose calls have effects, and what may have become of these."""

from __future__ import annotations

import json
from collections import Counter

from tests.acceptance.client import Client, Json, of_type
from tests.acceptance.gates import Gate
from tests.acceptance.waiting import eventually
from tests.chaos.gauge import Gauge

WORKER: Json = {
    "name": "worker",
    "model": "openai/obey",
    "tools": ["charge", "store", "look", "lookup"],
    "limits": {"max_wall_time_s": 300},
}


READER: Json = {"name": "reader", "model": "openai/obey", "tools": ["read", "order"]}


def speaker(seconds: float) -> Json:
    """An agent whose answer takes that long."""
    return {"name": "speaker", "model": f"openai/drip-{seconds:g}"}


def spoken(events: list[Json]) -> str:
    """The text of all deltas."""
    return "".join(event["data"]["delta"] for event in of_type(events, "text_delta"))


async def words_of(client: Client, run_id: str) -> None:
    """Wait for a run to have told some of its words."""

    async def look() -> list[Json]:
        return of_type(await client.events(run_id), "text_delta")

    await eventually(look, f"words of run {run_id}")


def some_work(chaos: Gauge, ledger: str) -> str:
    """Three steps of up to three calls; at least one of each step has an effect, and lasts a moment."""
    dice = chaos.dice

    def call(name: str) -> tuple[str, Json]:
        if name == "lookup":
            return name, {"word": "a"}
        where = {} if name == "look" else {"ledger": ledger}
        return name, {**where, "seconds": round(dice.uniform(0.1, 0.4), 2)}

    steps: list[list[tuple[str, Json]]] = []
    for _ in range(3):
        effect, *others = (*dice.sample(["charge", "store"], 2), "look", "lookup")
        steps.append([call(name) for name in (effect, *dice.sample(others, dice.randint(0, 2)))])
    return json.dumps(steps)


def check_effects(gate: Gate, runs: list[Json]) -> None:
    """No unsafe call was begun twice, and none that counts as done was not; a repeated one had the same key.

    What may be repeated is done in the end, if its run was completed.
    """
    begun = Counter((entry["run_id"], entry["tool_call_id"]) for entry in gate.calls())
    keys: dict[tuple[str, str], set[str]] = {}
    for entry in gate.calls():
        keys.setdefault((entry["run_id"], entry["tool_call_id"]), set()).add(entry["idempotency_key"])
    assert all(len(each) == 1 for each in keys.values())
    for run in runs:
        for call in run["result"]["tool_executions"]:
            times = begun[run["run_id"], call["tool_call_id"]]
            match call["tool_name"]:
                case "charge":
                    assert times <= 1, call
                    assert times == 1 or not call["success"], call
                case "store":
                    assert times >= 1 or not call["success"], call
                    assert call["success"] or run["status"] != "completed", call
                case _:
                    assert call["success"] or run["status"] != "completed", call
