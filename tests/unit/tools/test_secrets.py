"""Secrets: who gets them, and in which forms they are found again."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import structlog

from app.telemetry.logs import configure_logging, get_logger, redact_logs
from app.tools.errors import SecretError, ToolSettingError
from app.tools.hosts import HostPatterns
from app.tools.secrets import Secret, Secrets
from app.tools.secrets_file import read_secrets

VALUE = 's3cr3t/"Ä+ value\\'


@pytest.fixture
def restored_logging() -> Generator[None]:
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    yield
    redact_logs(str)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


@pytest.fixture
def secrets() -> Secrets:
    return Secrets(
        {
            "bound": Secret(VALUE, HostPatterns.parse(["api.example.com", "*.example.org"])),
            "unbound": Secret("another-value"),
        }
    )


def test_values_are_had_by_name_and_unknown_names_are_told(secrets: Secrets) -> None:
    assert secrets.value("bound") == secrets["bound"] == VALUE
    assert sorted(secrets) == ["bound", "unbound"]
    with pytest.raises(SecretError, match="there is no secret 'other'"):
        secrets.value("other")


@pytest.mark.parametrize("host", ["api.example.com", "API.example.com", "a.example.org"])
def test_a_secret_goes_to_the_hosts_that_it_is_bound_to(secrets: Secrets, host: str) -> None:
    assert secrets.for_host("bound", host) == VALUE


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("bound", "example.com"),
        ("bound", "example.org"),
        ("bound", "api.example.com.evil.example"),
        ("bound", "api.example.com."),
        ("bound", ""),
        ("unbound", "api.example.com"),
        ("other", "api.example.com"),
    ],
)
def test_a_secret_goes_to_no_other_host(secrets: Secrets, name: str, host: str) -> None:
    with pytest.raises(SecretError) as error:
        secrets.for_host(name, host)
    assert VALUE not in str(error.value)


@pytest.mark.parametrize(
    "form",
    [
        VALUE,
        repr(VALUE),
        json.dumps(VALUE),
        json.dumps(VALUE, ensure_ascii=False),
        json.dumps(VALUE).replace("/", "\\/"),
        quote(VALUE),
        quote(VALUE, safe=""),
        quote_plus(VALUE),
        re.sub("%..", lambda escape: escape[0].lower(), quote(VALUE, safe="")),
        *(base64.b64encode(before + VALUE.encode() + b"tail").decode() for before in (b"", b"a", b"ab", b"user:")),
        *(base64.urlsafe_b64encode(before + VALUE.encode()).decode() for before in (b"", b"a", b"ab")),
    ],
)
def test_a_secret_is_replaced_in_every_form(secrets: Secrets, form: str) -> None:
    redacted = secrets.redacted(f"before {form} after")
    assert "[secret:bound]" in redacted
    assert form not in redacted
    assert redacted.startswith("before ")
    assert redacted.endswith(" after")


def test_the_longer_of_two_secrets_is_replaced_whole() -> None:
    secrets = Secrets({"short": Secret("abcdef"), "long": Secret("abcdefghij")})
    assert secrets.redacted("abcdefghij abcdef") == "[secret:long] [secret:short]"


def test_no_text_of_the_secrets_shows_a_value(secrets: Secrets) -> None:
    told = f"{secrets} {secrets!r} {secrets.__dict__['_secrets']!r}"
    assert VALUE not in told
    assert "another-value" not in told
    assert "bound" in told


def test_a_value_that_would_be_found_everywhere_is_refused() -> None:
    with pytest.raises(ValueError, match="'pin' is shorter than 6"):
        Secrets({"pin": Secret("12345")})


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_log_line_has_a_secret(
    secrets: Secrets, log_format: str, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    configure_logging("json" if log_format == "json" else "console", "info")
    redact_logs(secrets.redacted)
    try:
        raise RuntimeError(f"said {VALUE}")
    except RuntimeError:
        get_logger("app.tools").exception("failed", token=VALUE, nested={"list": [VALUE]})
    told = capsys.readouterr().err
    assert told.count("[secret:bound]") >= 3
    assert "s3cr3t" not in told


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "secrets.yaml"
    path.write_text(text)
    return path


def test_a_file_holds_values_or_names_variables(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'stripe: {value: "sk-live-1", hosts: ["api.stripe.com", "*.stripe.dev"]}\nmail: {env: MAIL_KEY}\n',
    )
    secrets = read_secrets(path, {"MAIL_KEY": "from-outside"})
    assert secrets.for_host("stripe", "eu.stripe.dev") == "sk-live-1"
    assert secrets.value("mail") == "from-outside"
    with pytest.raises(SecretError):
        secrets.for_host("mail", "api.stripe.com")


def test_an_empty_file_holds_none(tmp_path: Path) -> None:
    assert len(read_secrets(written(tmp_path, "# nothing yet\n"), {})) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stripe: [hunter2x", "is no YAML"),
        ("stripe: {value: *hunter2x}", "is no YAML"),
        ("stripe: {value: !hunter2x a}", "is no YAML"),
        ("- hunter2x", "secrets by name"),
        ("stripe: hunter2x", "stripe: should have a value or an env"),
        ("stripe: {hunter2x}", "stripe: has a field besides"),
        ("stripe: {value: 12345678}", "stripe.value: should be a valid string"),
        ("stripe: {value: hunt2}", "stripe.value: String should have at least 6"),
        ("stripe: {hosts: [a.example]}", "stripe: should have either a value or an env"),
        ("stripe: {value: hunter2x, env: A}", "stripe: should have either a value or an env"),
        ("stripe: {env: hunter2x}", "stripe.env: the environment has no such variable"),
        ("stripe: {env: SHORT}", "stripe.env: the variable should have at least 6"),
        ("stripe: {value: hunter2x, hosts: [hunter2x/]}", "stripe.hosts.0: should be a host"),
        ("stripe: {value: hunter2x, hosts: ['*']}", "stripe.hosts.0: should be a host"),
        ("stripe: {value: hunter2x, hosts: ['a.example:443']}", "stripe.hosts.0: should be a host"),
        ("stripe: {value: hunter2x, hosts: a.example}", "stripe.hosts: should be a valid list"),
        ("stripe: {value: hunter2x}\nstripe: {value: hunter2y}", "line 2: the same name"),
        ("stripe: {value: hunter2x, value: hunter2y}", "line 1: the same name"),
        ("hunter2-x: {value: hunter2x}", "line 1: a name has"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_the_place_and_without_values(
    tmp_path: Path, text: str, told: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ToolSettingError) as error:
        read_secrets(path, {"SHORT": "hunt2"})
    assert str(error.value).startswith(f"SECRETS_FILE: {path}: ")
    assert told in str(error.value)
    assert "hunt" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolSettingError, match="cannot be read: No such file"):
        read_secrets(tmp_path / "none.yaml", {})
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ToolSettingError, match="no UTF-8"):
        read_secrets(path, {})
