"""The request of an HTTP tool: what arguments can and cannot do to it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.engine.tool_definitions import HttpToolDefinition
from app.tools.egress import Request
from app.tools.errors import CallError, SecretError, ToolDefinitionError
from app.tools.hosts import HostPatterns
from app.tools.http_request import RequestTemplate
from app.tools.secrets import Secret, Secrets

SECRETS = Secrets(
    {
        "key": Secret("hunter2x", HostPatterns.parse(["api.example.com"])),
        "other": Secret("hunter2y", HostPatterns.parse(["other.example"])),
        "lines": Secret("two\nlines", HostPatterns.parse(["api.example.com"])),
    }
)


def definition(url: str, *names: str, method: str = "GET", **fields: Any) -> HttpToolDefinition:
    schema = {"type": "object", "properties": {name: {} for name in names}, "required": list(names)}
    return HttpToolDefinition.model_validate(
        {"type": "http", "name": "orders", "method": method, "url": url, "parameters": schema, **fields}
    )


def request(url: str, arguments: dict[str, Any], *names: str, method: str = "GET", **fields: Any) -> Request:
    return RequestTemplate(definition(url, *names, method=method, **fields)).filled(arguments, SECRETS, None)


def sent(url: str, arguments: dict[str, Any], *names: str) -> str:
    return str(request(url, arguments, *names).target.url)


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("42", "42"),
        (42, "42"),
        (1.5, "1.5"),
        (True, "true"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("a?b=c", "a%3Fb%3Dc"),
        ("a#b", "a%23b"),
        ("a&b;c", "a%26b%3Bc"),
        ("%2e%2e", "%252e%252e"),
        ("@evil.example", "%40evil.example"),
        ("//evil.example", "%2F%2Fevil.example"),
        ("{other}", "%7Bother%7D"),
        ("ä", "%C3%A4"),
        ("v1..2", "v1..2"),
        ("...", "..."),
        ("a\\b", "a%5Cb"),
    ],
)
def test_an_argument_is_one_segment_of_the_path_whatever_is_in_it(value: object, segment: str) -> None:
    assert sent("https://api.example.com/orders/{id}/items", {"id": value}, "id") == (
        f"https://api.example.com/orders/{segment}/items"
    )


@pytest.mark.parametrize(
    "value", ["", ".", "..", "../admin", "a/../b", "..\\admin", "a/.", "a\r\nX: y", "a\0b", "\x7f", None, [], {}]
)
def test_an_argument_that_would_change_the_path_is_refused(value: object) -> None:
    with pytest.raises(CallError, match=r"^id: "):
        sent("https://api.example.com/orders/{id}", {"id": value}, "id")


def test_arguments_cannot_make_dots_of_a_segment_together_with_what_is_written_there() -> None:
    assert sent("https://api.example.com/.{a}/x", {"a": "x"}, "a").endswith("/.x/x")
    for url, arguments in (("/%2E{a}/x", {"a": "."}), ("/{a}{b}", {"a": ".", "b": "."}), ("/.{a}/x", {"a": ""})):
        with pytest.raises(CallError):
            sent("https://api.example.com" + url, arguments, *arguments)


def test_a_value_in_the_query_is_encoded_and_may_be_empty() -> None:
    url = "https://api.example.com/find?q={q}&limit=10&x=a%20b"
    assert sent(url, {"q": "a&limit=99#x y+"}, "q") == (
        "https://api.example.com/find?q=a%26limit%3D99%23x%20y%2B&limit=10&x=a%20b"
    )
    assert sent(url, {"q": ""}, "q") == "https://api.example.com/find?q=&limit=10&x=a%20b"


def test_what_is_left_becomes_the_query_of_a_get_or_delete() -> None:
    arguments = {"id": 1, "tag": ["a", "b&c"], "deep": {"x": 1}, "none": None, "on": True, "n&": "x"}
    for method in ("GET", "DELETE"):
        built = request("https://api.example.com/o/{id}?fixed=1", arguments, *arguments, method=method)
        assert str(built.target.url) == (
            "https://api.example.com/o/1?fixed=1&tag=a&tag=b%26c&deep=%7B%22x%22%3A%201%7D&on=true&n%26=x"
        )
        assert built.body is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_what_is_left_becomes_the_json_body_of_the_rest(method: str) -> None:
    built = request(
        "https://api.example.com/o/{id}", {"id": 1, "n": 10**30, "t": "ä\u2028"}, "id", "n", "t", method=method
    )
    assert built.method == method
    assert built.headers["Content-Type"] == "application/json"
    assert (built.body or b"").decode() == '{"n": 1000000000000000000000000000000, "t": "ä\u2028"}'
    assert orjson.loads(request("https://api.example.com/", {}, method=method).body or b"") == {}


def test_the_host_and_what_is_written_in_the_url_stay_as_they_are() -> None:
    assert sent("https://API.example.com:8443/a%2Fb;v=1/ü/{{id}}", {"id": "x"}, "id") == (
        "https://api.example.com:8443/a%2Fb;v=1/%C3%BC/%7Bx%7D"
    )
    assert sent("https://api.example.com", {}) == "https://api.example.com/"


def test_an_idempotency_key_becomes_its_header() -> None:
    template = RequestTemplate(definition("https://api.example.com/", method="POST"))
    assert template.filled({}, SECRETS, "run/1").headers["Idempotency-Key"] == "run/1"
    assert "Idempotency-Key" not in template.filled({}, SECRETS, None).headers


def test_a_definition_may_say_which_json_it_sends_and_takes() -> None:
    built = request(
        "https://api.example.com/",
        {},
        method="POST",
        headers={"content-type": "application/vnd.api+json", "ACCEPT": "application/vnd.api+json"},
    )
    assert built.headers == {"content-type": "application/vnd.api+json", "ACCEPT": "application/vnd.api+json"}


def test_secrets_go_into_headers_of_their_own() -> None:
    built = request(
        "https://api.example.com/", {}, headers={"Authorization": "Bearer {{ secrets.key }}", "X-Plain": "1"}
    )
    assert built.secret_headers == {"Authorization": "Bearer hunter2x"}
    assert built.headers["X-Plain"] == "1"
    assert "Authorization" not in built.headers


@pytest.mark.parametrize("name", ["other", "none", "lines"])
def test_a_secret_that_may_not_go_there_stops_the_call(name: str) -> None:
    with pytest.raises(SecretError) as error:
        request("https://api.example.com/", {}, headers={"X-Key": f"{{{{secrets.{name}}}}}"})
    assert "hunter2y" not in str(error.value)
    assert "lines\n" not in str(error.value)


def test_arguments_are_not_looked_through_for_secrets() -> None:
    built = request("https://api.example.com/{id}", {"id": "{{ secrets.key }}"}, "id")
    assert "hunter2x" not in str(built.target.url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.com:99999/", "ort"),
        ("https://example.com:x/", "ort"),
        ("https://[::1]:a/", "ort"),
        ("https://api.example.com/a/../b", "no . or .."),
        ("https://api.example.com/a/%2e%2E/b", "no . or .."),
        ("https://api.example.com/./b", "no . or .."),
        ("https://api.example.com/a#b", "fragment"),
        ("https://api.example.com/a b", "percent-encoded"),
        ("https://api.example.com/a\\b", "percent-encoded"),
        ("https://api.example.com/100%", "percent-encoded"),
        ("https://0x7f.1/", "usual spelling"),
        ("https://api.example.com./", "usual spelling"),
        ("https://api.example.com:0/", "port"),
    ],
)
def test_a_url_that_could_not_be_sent_is_refused_when_it_is_defined(url: str, told: str) -> None:
    with pytest.raises(ToolDefinitionError, match=r"^url: ") as error:
        RequestTemplate(definition(url))
    assert told in str(error.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "other.example"},
        {"content-length": "3"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "x"},
        {"Proxy-Authorization": "x"},
        {"Accept-Encoding": "br"},
        {"Idempotency-Key": "mine"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"X-A": "1", "x-a": "2"},
        {"X-A\n": "1"},
        {"X-A": "{{ secret.key }}"},
        {"X-A": "{{ secrets.key }} {{ context.user }}"},
    ],
)
def test_headers_that_could_not_be_sent_are_refused_when_they_are_defined(headers: dict[str, str]) -> None:
    with pytest.raises(ToolDefinitionError, match=r"^headers: "):
        RequestTemplate(definition("https://api.example.com/", method="POST").model_copy(update={"headers": headers}))


@pytest.mark.parametrize("required", [None, 5, [["id"]], [{}]])
def test_a_schema_that_is_none_is_no_accident(required: object) -> None:
    broken = definition("https://api.example.com/{id}", "id").model_copy(
        update={"parameters": {"type": "object", "properties": {"id": {}}, "required": required}}
    )
    with pytest.raises(ToolDefinitionError):
        RequestTemplate(broken)


def test_what_the_url_takes_is_required_or_has_a_default() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "string"}}}
    with pytest.raises(ToolDefinitionError, match=r"^url: \{id\} should be required"):
        RequestTemplate(definition("https://api.example.com/{id}", parameters=schema))
    schema["properties"]["id"]["default"] = "all"
    RequestTemplate(definition("https://api.example.com/{id}", parameters=schema))
