"""Memories over HTTP, as the document says."""

from __future__ import annotations

import re
import uuid
from typing import Any

import httpx
import pytest

from tests.contract.http.conftest import Fits


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test has, with what URLs take for something else."""
    return f"users/{uuid.uuid4()}/a?b=c&d#e%2Ff+ü"


def test_a_memory_from_its_first_put_to_its_deletion(http: httpx.Client, fits: Fits, namespace: str) -> None:
    item = {"namespace": namespace, "key": "trips/seat 1?&=#+%"}
    value: dict[str, Any] = {"seat": ["window", None, 1.5, True], "ü": {}}
    first = http.put("/memories", json={**item, "value": value, "text": "Wants the window."})
    made = fits("put_memory", first)
    assert first.status_code == 201
    assert made.items() >= {**item, "value": value, "text": "Wants the window.", "embedding_model": None}.items()
    assert made["created_at"] <= made["updated_at"]
    assert fits("get_memory", http.get("/memories/item", params=item)) == made

    later = http.put("/memories", json={**item, "value": "aisle"})
    changed = fits("put_memory", later)
    assert later.status_code == 200
    assert (changed["value"], changed["text"], changed["created_at"]) == ("aisle", "aisle", made["created_at"])
    assert changed["updated_at"] > made["updated_at"]

    fits("delete_memory", http.delete("/memories/item", params=item))
    gone = http.get("/memories/item", params=item)
    assert fits("get_memory", gone)["code"] == "not_found"
    assert "trips/seat" in gone.json()["detail"]
    assert fits("delete_memory", http.delete("/memories/item", params=item))["code"] == "not_found"


def test_null_is_a_value_and_no_value_is_none(http: httpx.Client, fits: Fits, namespace: str) -> None:
    body = {"namespace": namespace, "key": "k"}
    assert fits("put_memory", http.put("/memories", json={**body, "value": None}))["value"] is None
    assert fits("put_memory", http.put("/memories", json=body))["errors"][0]["loc"] == ["body", "value"]


def test_lists_go_on_by_cursor_within_one_namespace(http: httpx.Client, fits: Fits, namespace: str) -> None:
    for place in (namespace, f"{namespace}/below"):
        for key in ("c", "a", "b"):
            http.put("/memories", json={"namespace": place, "key": key, "value": 1}).raise_for_status()
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = fits("list_memories", http.get("/memories", params={"namespace": namespace, "limit": 2, **cursor}))
        seen += [memory["key"] for memory in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == ["a", "b", "c"]
    assert fits("delete_memories", http.delete("/memories", params={"namespace": namespace})) == {
        "deleted": 3, "more": False,
    }  # fmt: skip
    assert fits("list_memories", http.get("/memories", params={"namespace": namespace}))["items"] == []
    assert len(http.get("/memories", params={"namespace": f"{namespace}/below"}).json()["items"]) == 3


def test_a_search_says_what_it_found_and_how(http: httpx.Client, fits: Fits, namespace: str) -> None:
    for key, text in {"tea": "Likes green tea.", "dog": "Has a dog."}.items():
        http.put("/memories", json={"namespace": namespace, "key": key, "value": text}).raise_for_status()
    found = fits("search_memories", http.post("/memories/search", json={"namespace": namespace, "query": "which tea?"}))
    assert [item["memory"]["key"] for item in found["items"]] == ["tea"]
    assert found["items"][0]["score"] > 0
    assert (found["mode"], found["reason"]) == ("text", "no embedding model is set")
    elsewhere = {"namespace": f"{namespace}/below", "query": "tea"}
    assert fits("search_memories", http.post("/memories/search", json=elsewhere))["items"] == []


@pytest.mark.parametrize("bad", ["", "/", "/a", "a/", "a//b", "a b", "a\nb", "a\0b", "x" * 256])
def test_a_namespace_that_is_none_is_refused_everywhere(http: httpx.Client, fits: Fits, bad: str) -> None:
    requests = {
        "put_memory": ("PUT", "/memories", {"json": {"namespace": bad, "key": "k", "value": 1}}),
        "search_memories": ("POST", "/memories/search", {"json": {"namespace": bad, "query": "q"}}),
        "list_memories": ("GET", "/memories", {"params": {"namespace": bad}}),
        "delete_memories": ("DELETE", "/memories", {"params": {"namespace": bad}}),
        "get_memory": ("GET", "/memories/item", {"params": {"namespace": bad, "key": "k"}}),
        "delete_memory": ("DELETE", "/memories/item", {"params": {"namespace": bad, "key": "k"}}),
    }
    for operation, (method, path, more) in requests.items():
        answer = http.request(method, path, **more)
        assert answer.status_code == 422, operation
        (error,) = fits(operation, answer)["errors"]
        assert error["loc"][-1] == "namespace"
        assert error["msg"] in (
            "should be names without spaces and control characters, with single slashes between them, as in users/42",
            "string should have at most 255 characters",
            "NUL characters cannot be stored",
        )


@pytest.mark.parametrize("bad", ["a\nb", "\x7f"])
def test_a_key_that_is_none_is_refused_in_words(http: httpx.Client, fits: Fits, namespace: str, bad: str) -> None:
    refused = http.put("/memories", json={"namespace": namespace, "key": bad, "value": 1})
    (error,) = fits("put_memory", refused)["errors"]
    assert error == {"loc": ["body", "key"], "msg": "should have no control characters, such as line breaks"}


def test_the_document_says_what_namespaces_and_keys_are(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["MemoryPut"]["properties"]
    assert re.fullmatch(fields["namespace"]["pattern"], "users/42")
    assert not re.fullmatch(fields["namespace"]["pattern"], "users//42")
    assert not re.fullmatch(fields["key"]["pattern"], "a\nb")
    assert (fields["key"]["minLength"], fields["key"]["maxLength"], fields["namespace"]["maxLength"]) == (1, 255, 255)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": "x" * 256}, "key"),
        ({"key": "a\nb"}, "key"),
        ({"key": "a\0b"}, "key"),
        ({"text": ""}, "text"),
        ({"text": "x" * 16_001}, "text"),
        ({"text": "a\0b"}, "text"),
        ({"value": {"a": ["\0"]}}, "0"),
        ({"value": "x" * 65_536}, "value"),
        ({"more": 1}, "more"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_name(
    http: httpx.Client, fits: Fits, namespace: str, change: dict[str, Any], field: str
) -> None:
    answer = http.put("/memories", json={"namespace": namespace, "key": "k", "value": 1, **change})
    assert answer.status_code == 422
    assert str(fits("put_memory", answer)["errors"][0]["loc"][-1]) == field
    assert http.get("/memories", params={"namespace": namespace}).json()["items"] == []


def test_the_longest_of_everything_is_kept(http: httpx.Client, fits: Fits) -> None:
    item = {"namespace": "\U0001f642" * 255, "key": "\U0001f643" * 255}
    body = {**item, "value": "x" * 65_534, "text": "\U0001f642 " * 8_000}
    try:
        made = fits("put_memory", http.put("/memories", json=body))
        assert made.items() >= body.items()
        assert fits("get_memory", http.get("/memories/item", params=item)) == made
    finally:
        http.delete("/memories", params={"namespace": item["namespace"]}).raise_for_status()


@pytest.mark.parametrize(("path", "lacks"), [("/memories", "namespace"), ("/memories/item?namespace=a", "key")])
def test_a_query_without_what_it_needs_is_refused(http: httpx.Client, fits: Fits, path: str, lacks: str) -> None:
    errors = http.get(path).json()["errors"]
    assert errors == [{"loc": ["query", lacks], "msg": "this is required"}]


def test_the_service_says_that_it_has_memories(http: httpx.Client) -> None:
    assert "memories" in http.get("/info").json()["capabilities"]
    tools = {tool["name"]: tool for tool in http.get("/tools", params={"limit": 100}).json()["items"]}
    assert (tools["remember"]["effect"], tools["recall"]["effect"]) == ("idempotent", "read_only")


def test_agents_name_the_tools_and_a_namespace_and_get_an_unfit_one_told(http: httpx.Client, fits: Fits) -> None:
    path = f"/agents/agent-{uuid.uuid4()}"
    agent = {"model": "demo/assistant", "tools": ["remember", "recall"], "memory_namespace": "teams/{{ team.id }}"}
    assert fits("put_agent", http.put(path, json=agent))["definition"]["memory_namespace"] == "teams/{{ team.id }}"
    refused = fits("put_agent", http.put(path, json={**agent, "memory_namespace": "a//b"}))
    assert refused["errors"][0]["loc"] == ["body", "memory_namespace"]
    fits("delete_agent", http.delete(path))
