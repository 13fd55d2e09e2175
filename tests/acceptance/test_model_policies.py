"""All policies of model calls together, through the service."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.engine.usage import Usage
from app.llm.pricing import bundled_prices
from tests.acceptance.client import Client, Json, an_agent, check_log, of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import Model
from tests.acceptance.waiting import eventually
from tests.exposition import Exposition
from tests.model_server import RecordedRequest, Reply

MAIN, SPARE = "openai/gpt-4o-mini", "mistral/mistral-small-latest"
POLICIES = {
    "timeout": {"first_byte_s": 2.0},
    "hedging": {"after_s": 0.7},
    "coalescing": True,
    "cache": {"enabled": True},
}


@pytest.fixture
def other() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@dataclass
class Book:
    """What a provider would charge for: the whole answers that it sent, and the pieces of those that it cut."""

    whole: list[tuple[int, int]] = field(default_factory=list)
    cut_chars: list[int] = field(default_factory=list)
    hung: int = 0
    at: list[float] = field(default_factory=list)

    def answer(self, text: str, dice: random.Random) -> Reply:
        usage = (dice.randint(10, 2000), dice.randint(1, 500))
        self.whole.append(usage)
        return Reply(text=text, usage={"prompt_tokens": usage[0], "completion_tokens": usage[1]})

    def cost(self, model: str) -> Decimal:
        """Of the whole answers, in US dollars."""
        return sum((_cost(model, tokens) for tokens in self.whole), Decimal(0))


class Unreliable:
    """A provider in trouble: it refuses half of all calls, cuts every tenth stream, says nothing now and then, and is
    down for ten calls after every thirty.
    """

    def __init__(self) -> None:
        self.book = Book()
        self._dice = random.Random(7)
        self._calls, self._streams = itertools.count(1), itertools.count(1)

    def __call__(self, request: RecordedRequest) -> Reply:
        book = self.book
        book.at.append(request.at)
        call = next(self._calls)
        if call % 40 >= 30:
            return Reply.error(503, "down")
        if call % 2:
            return Reply.error(429, "slow down")
        number = next(self._streams)
        if number % 10 == 0:
            pieces = self._dice.randint(1, 40)
            book.cut_chars.append(5 * pieces)
            return Reply(text=["word "] * 60, cut_after=pieces, end_delay_s=0.3)
        if number % 17 == 0:
            book.hung += 1
            return Reply(delay_s=600)
        return book.answer("From the first one.", self._dice)


async def test_a_provider_in_every_trouble_costs_no_run_and_every_token_is_counted(
    serve: Serve, settings: Settings, database_url: str, model: Model, other: Model, caller: Caller, tmp_path: Path
) -> None:
    providers = {
        "openai": {
            "requests_per_minute": 120,
            "rate_limit_wait_s": 0.5,
            "circuit_breaker": {"failures": 4, "open_s": 0.2},
        },
        "mistral": {"client": "openai", "base_url": other.base_url, "api_key": {"env": "SPARE_KEY"}},
    }
    file = tmp_path / "providers.yaml"
    file.write_text(yaml.safe_dump(providers), encoding="utf-8")
    environment = settings(DATABASE_URL=database_url, PROVIDERS_FILE=str(file), SPARE_KEY="sk-spare")
    service = serve(environment).ready()
    unreliable, spare, dice = Unreliable(), Book(), random.Random(8)
    model.answer(unreliable)
    other.answer(lambda _: spare.answer("From the second one.", dice))
    client = caller(service)

    runs = await asyncio.gather(*[_run_one(client, number) for number in range(200)])
    metrics = Exposition((await client.http.get("/metrics")).content)

    assert {run["status"] for run in runs} == {"completed"}
    seen = unreliable.book
    assert max(sum(at <= each < at + 60 for each in seen.at) for at in seen.at) == 120  # reached, and never crossed
    warnings = [warning for run in runs for warning in run["warnings"]]
    estimated = [each["data"] for each in warnings if each["data"]["code"] == "usage_estimated"]
    fallen = [each["data"] for each in warnings if each["data"]["code"] == "fallback_used"]
    _check_spend(runs, estimated, seen, spare)
    assert {each["to_model"] for each in fallen} == {SPARE}
    assert {each["reason"] for each in fallen} >= {"rate_limited", "circuit_open"}
    assert metrics.value("agent_runner_model_circuits_opened_total") >= 1
    assert {headers["authorization"] for headers in other.headers()} == {"Bearer sk-spare"}
    assert sum(run["reused"] for run in runs) >= 10
    # What was cut: every stream that had said something, and near to what it had said.
    broken = [each for each in estimated if each["usage"]["output_tokens"]]
    assert len(broken) == len(seen.cut_chars)
    told, sent = sum(each["usage"]["output_tokens"] for each in broken), sum(seen.cut_chars) / 4
    assert 0.8 * sent <= told <= 1.2 * sent + len(broken)


def _check_spend(runs: list[Json], estimated: list[Json], *books: Book) -> None:
    """All that runs have counted is what was charged for whole answers, and what they say was estimated."""
    counted = [run["result"]["usage_aggregate"] for run in runs]
    for kind, place in (("input_tokens", 0), ("output_tokens", 1)):
        charged = sum(tokens[place] for book in books for tokens in book.whole)
        assert sum(each[kind] for each in counted) == charged + sum(each["usage"][kind] for each in estimated)
    calls = sum(len(book.whole) for book in books) + len(estimated)
    assert sum(each["llm_calls"] for each in counted) == calls
    charged_usd = books[0].cost(MAIN) + books[1].cost(SPARE)
    estimated_usd = sum(Decimal(repr(each["cost_usd"])) for each in estimated)
    counted_usd = sum(Decimal(repr(run["result"]["total_cost_usd"])) for run in runs)
    assert abs(counted_usd - charged_usd - estimated_usd) < Decimal("1e-9")
    assert counted_usd > 0


async def _run_one(client: Client, number: int) -> Json:
    """A run that begins in its turn; every eighth one asks the same as others."""
    await asyncio.sleep(number * 0.06)
    text = "The same." if number % 8 == 0 else f"Question {number}?"
    agent = an_agent(
        model=MAIN, tools=[], fallback_models=[SPARE], model_policies=POLICIES, model_settings={"temperature": 0}
    )
    created = await client.create(agent=agent, input=text)
    run = await client.wait(created["run_id"])
    events = await client.events(run["run_id"])
    check_log(events, run)
    reused = any(event["data"]["reused"] for event in of_type(events, "llm_completed"))
    return {**run, "warnings": of_type(events, "warning"), "reused": reused}


def _cost(model: str, tokens: tuple[int, int]) -> Decimal:
    cost = bundled_prices().cost_of(model, Usage(1, *tokens))
    assert cost is not None
    return cost


@pytest.fixture
async def one(
    serve: Serve, settings: Settings, database_url: str, caller: Caller, other: Model, tmp_path: Path
) -> Client:
    """A caller of a service with a provider of its own, `local`."""
    file = tmp_path / "providers.yaml"
    local: dict[str, Any] = {"client": "openai", "base_url": other.base_url}
    file.write_text(yaml.safe_dump({"local": local}), encoding="utf-8")
    return caller(serve(settings(DATABASE_URL=database_url, PROVIDERS_FILE=str(file))).ready())


async def test_a_declared_provider_answers_under_its_prefix_and_is_named(one: Client, other: Model) -> None:
    info = (await one.http.get("/info")).json()
    assert info["model_clients"] == ["openai", "anthropic", "local", "demo", "litellm"]
    other.script(Reply(text="Local."))
    run = await one.create_and_wait(agent=an_agent(model="local/org/llama3"), input="Go.")
    assert (run["result"]["final_text"], run["result"]["provider"]) == ("Local.", "local")
    assert [request["model"] for request in other.requests()] == ["org/llama3"]
    assert "authorization" not in other.headers()[0]
    refused = await one.http.put("/agents/typo", json={"model": "locl/llama3"})
    assert refused.status_code == 422, refused.text
    assert "did you mean local/llama3" in refused.text


async def test_cached_answers_are_shared_by_runs_and_cost_nothing(one: Client, other: Model) -> None:
    other.script(Reply(text="Once."))
    agent = an_agent(
        model="local/llama3",
        model_policies={"cache": {"enabled": True, "ttl_s": 60}},
        model_settings={"temperature": 0},
    )
    runs = [await one.create_and_wait(agent=agent, input="Go.") for _ in range(2)]
    assert [run["result"]["final_text"] for run in runs] == ["Once."] * 2
    assert len(other.requests()) == 1
    assert [run["result"]["usage_aggregate"]["llm_calls"] for run in runs] == [1, 0]
    assert runs[1]["result"]["total_cost_usd"] == 0


async def test_replicas_share_a_limit(
    serve: Serve, settings: Settings, database_url: str, other: Model, caller: Caller, tmp_path: Path
) -> None:
    """Seen to fail where the heartbeat does not tell how many replicas there are."""
    limited = {"client": "openai", "base_url": other.base_url, "requests_per_minute": 4, "rate_limit_wait_s": 0.01}
    file = tmp_path / "providers.yaml"
    file.write_text(yaml.safe_dump({"local": limited}), encoding="utf-8")
    environment = settings(DATABASE_URL=database_url, PROVIDERS_FILE=str(file), LEASE_S="3")
    clients = [caller(serve(environment).ready()) for _ in range(2)]
    other.answer(lambda _: Reply(text="Yes."))

    async def all_know() -> bool:
        told = [Exposition((await client.http.get("/metrics")).content) for client in clients]
        return all(each.value("agent_runner_replicas") == 2 for each in told)

    await eventually(all_know, "both replicas to know of each other")
    agent = an_agent(model="local/llama3", model_policies={"retry": {"max_attempts": 1}})
    for client in clients:
        runs = [await client.create_and_wait(agent=agent, input="Go.") for _ in range(3)]
        codes = [(run["error"] or {}).get("code") for run in runs]
        assert codes == [None, None, "rate_limited"]
    assert len(other.requests()) == 4


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_file_that_cannot_be_used_keeps_the_service_from_starting_as_any_setting_does(
    workers: str, serve: Serve, settings: Settings, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "providers.yaml"
    file.write_text("local: {client: openai, api_key: sk-secret}\nopenai: {circuit_breakr: {}}", encoding="utf-8")
    service = serve(settings(DATABASE_URL=database_url, PROVIDERS_FILE=str(file), WORKERS=workers))
    assert service.ended() == 2
    first, second = service.stderr().splitlines()
    assert first.startswith(f"agent-runner: PROVIDERS_FILE: {file}: local.base_url: is needed")
    assert second.startswith(f"PROVIDERS_FILE: {file}: openai.circuit_breakr: there is no such setting")
    assert "sk-secret" not in service.stderr()


async def test_a_step_that_was_restarted_says_what_it_cost(one: Client, other: Model) -> None:
    other.script(Reply(text=["Hal"], cut_after=1), Reply(text="Hello."))
    run = await one.create_and_wait(agent=an_agent(model="local/llama3"), input="Go.")
    assert run["result"]["usage_aggregate"]["llm_calls"] == 2
    codes = [event["data"]["code"] for event in of_type(await one.events(run["run_id"]), "warning")]
    assert codes == ["step_restarted", "usage_estimated", "price_unknown"]
