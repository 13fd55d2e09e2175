from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.api.errors import ProblemCode
from app.engine.events import EventType
from app.services.family_stream import SUBAGENT_EVENT

Document = dict[str, Any]

# The contract's operations, by method and path.
OPERATIONS = {
    "POST /runs": "create_run",
    "POST /runs/wait": "create_run_and_wait",
    "POST /runs/stream": "create_run_and_stream",
    "POST /runs/batch": "create_runs",
    "GET /runs": "list_runs",
    "GET /runs/{run_id}": "get_run",
    "GET /runs/{run_id}/wait": "wait_run",
    "DELETE /runs/{run_id}": "delete_run",
    "POST /runs/{run_id}/pause": "pause_run",
    "POST /runs/{run_id}/resume": "resume_run",
    "POST /runs/{run_id}/cancel": "cancel_run",
    "POST /runs/{run_id}/fork": "fork_run",
    "POST /runs/{run_id}/interrupt": "interrupt_run",
    "GET /interactions": "list_interactions",
    "GET /runs/{run_id}/interactions": "list_run_interactions",
    "POST /runs/{run_id}/interactions/{interaction_id}": "resolve_interaction",
    "POST /runs/{run_id}/tool-calls/{tool_call_id}/result": "submit_tool_result",
    "GET /runs/{run_id}/events": "stream_run_events",
    "GET /runs/{run_id}/events/list": "list_run_events",
    "GET /runs/{run_id}/checkpoints": "list_checkpoints",
    "GET /runs/{run_id}/checkpoints/{checkpoint_id}": "get_checkpoint",
    "POST /threads": "create_thread",
    "GET /threads": "list_threads",
    "GET /threads/{thread_id}": "get_thread",
    "PATCH /threads/{thread_id}": "update_thread",
    "DELETE /threads/{thread_id}": "delete_thread",
    "GET /threads/{thread_id}/messages": "list_messages",
    "POST /threads/{thread_id}/messages": "append_message",
    "GET /threads/{thread_id}/runs": "list_thread_runs",
    "POST /threads/{thread_id}/compact": "compact_thread",
    "POST /threads/{thread_id}/copy": "copy_thread",
    "GET /threads/{thread_id}/events": "stream_thread_events",
    "PUT /memories": "put_memory",
    "GET /memories": "list_memories",
    "DELETE /memories": "delete_memories",
    "GET /memories/item": "get_memory",
    "DELETE /memories/item": "delete_memory",
    "POST /memories/search": "search_memories",
    "PUT /agents/{name}": "put_agent",
    "GET /agents": "list_agents",
    "GET /agents/{name}": "get_agent",
    "GET /agents/{name}/versions": "list_agent_versions",
    "DELETE /agents/{name}": "delete_agent",
    "GET /tools": "list_tools",
    "GET /healthz": "healthz",
    "GET /readyz": "readyz",
    "GET /info": "info",
    "GET /metrics": "metrics",
}
STREAMS = {"create_run_and_stream", "stream_run_events", "stream_thread_events"}
CREATING = {"create_run", "create_run_and_wait", "create_run_and_stream", "create_runs", "create_thread"}
CREATING |= {"append_message", "copy_thread", "fork_run"}


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_operations_are_those_of_the_contract(document: Document) -> None:
    assert {where: operation["operationId"] for where, operation in _operations(document)} == OPERATIONS


def test_every_operation_has_a_summary_and_its_errors(document: Document) -> None:
    for where, operation in _operations(document):
        assert operation["summary"], where
        errors = {status for status in operation["responses"] if status >= "400"}
        assert errors >= {"422", "500", "503"}, where
        assert ("404" in errors) or "{" not in where or where.startswith(("PUT", "POST /threads")), where
        # A body that nobody asked for is read as well: it must be empty, and a large one is refused.
        assert where.startswith(("POST", "PUT", "PATCH")) == ({"413", "415"} <= errors), where


def test_every_error_is_a_problem_with_an_example(document: Document, check: Callable[[str, object], None]) -> None:
    for where, operation in _operations(document):
        for status, answer in operation["responses"].items():
            if status < "400":
                continue
            assert list(answer["content"]) == ["application/problem+json"], where
            problem = answer["content"]["application/problem+json"]
            assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in problem["examples"].items():
                check("Problem", example["value"])
                assert (example["value"]["code"], example["value"]["status"]) == (code, int(status))


def test_every_body_and_answer_has_an_example_that_fits(
    document: Document, check: Callable[[str, object], None]
) -> None:
    for where, operation in _operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        answers = [answer for status, answer in operation["responses"].items() if status < "300"]
        for part in (*bodies, *answers):
            for media_type, content in part.get("content", {}).items():
                assert content["example"], where
                if media_type == "application/json":
                    check(content["schema"]["$ref"].rpartition("/")[2], content["example"])


def test_streams_are_strings(document: Document) -> None:
    for where, operation in _operations(document):
        answer = operation["responses"].get("200", {}).get("content", {})
        assert ("text/event-stream" in answer) == (operation["operationId"] in STREAMS), where
        if "text/event-stream" in answer:
            assert list(answer) == ["text/event-stream"]
            assert answer["text/event-stream"]["schema"] == {"type": "string"}
    created = document["paths"]["/runs/stream"]["post"]["responses"]["200"]
    assert "Run-Id" in created["headers"]


def test_creating_operations_take_an_idempotency_key(document: Document) -> None:
    for where, operation in _operations(document):
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        assert ("Idempotency-Key" in names) == (operation["operationId"] in CREATING), where


def test_no_parameter_can_be_null(document: Document) -> None:
    for where, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            assert "null" not in str(parameter["schema"]), (where, parameter["name"])


def test_every_event_type_has_a_variant_and_the_last_is_open(document: Document) -> None:
    schemas = document["components"]["schemas"]
    own = [kind.value for kind in EventType]
    for name, known in (("Event", [*own, SUBAGENT_EVENT]), ("RunEvent", own)):
        variants = [schemas[variant["$ref"].rpartition("/")[2]] for variant in schemas[name]["oneOf"]]
        types = [variant["properties"]["type"] for variant in variants]
        assert [type_.get("const") for type_ in types] == [*known, None]
        assert types[-1]["not"]["enum"] == [*own, SUBAGENT_EVENT]


def test_a_problems_code_is_one_of_the_contracts(document: Document) -> None:
    assert document["components"]["schemas"]["ProblemCode"]["enum"] == [code.value for code in ProblemCode]


@pytest.mark.parametrize(
    "name",
    [
        "Run",
        "AgentResult",
        "StateSnapshot",
        "SubagentExecutionRecord",
        "Usage",
        "Thread",
        "ThreadDetail",
        "ThreadCompaction",
        "Message",
        "Checkpoint",
        "Interaction",
        "ToolResultReceipt",
        "Agent",
        "Tool",
    ],
)
def test_every_field_of_an_answer_is_there(document: Document, name: str) -> None:
    schema = document["components"]["schemas"][name]
    assert set(schema["required"]) == set(schema["properties"])


def test_the_document_refers_only_to_what_it_has(document: Document) -> None:
    def references(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for child in value.values():
                yield from references(child)
        elif isinstance(value, list):
            for child in value:
                yield from references(child)

    used = {reference.rpartition("/")[2] for reference in references(document)}
    assert used == set(document["components"]["schemas"])
