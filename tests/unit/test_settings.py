"""Settings: what is read, what is refused and how that is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the caller's and no `.env`."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_example_lists_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    listed = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert list(listed) == [name.upper() for name in Settings.model_fields]

    default = Settings.load()
    for name, value in listed.items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == default


def test_the_environment_goes_before_the_file_and_arguments_before_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PORT=1001\nHOST=file\nWORKERS=3\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("PORT", "1002")
    monkeypatch.setenv("HOST", "environment")
    settings = Settings.load(port="1003", host=None)
    assert (settings.port, settings.host, settings.workers) == (1003, "environment", 3)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_every_spelling_of_a_database_url_becomes_one(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://u:p@h:5433/name?sslmode=require")
    assert Settings.load().database_url == "postgresql://u:p@h:5433/name?sslmode=require"


def test_tool_modules_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_MODULES", "tools.weather, tools.mail,")
    assert Settings.load().tool_modules == ("tools.weather", "tools.mail")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "abc", "a whole number"),
        ("PORT", "65536", "65535"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("LEASE_S", "1", "greater than or equal to 2"),
        ("SHUTDOWN_DELAY_S", "20", "less than SHUTDOWN_GRACE_S"),
        ("LEASE_S", "nan", "finite"),
        ("SHUTDOWN_GRACE_S", "soon", "a number"),
        ("MAX_QUEUED_RUNS", "-1", "greater than or equal to 1"),
        ("DATABASE_PREPARED", "maybe", "on or off"),
        ("LOG_FORMAT", "xml", "'console' or 'json'"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("TELEMETRY", "yes", "'otel'"),
        ("TOOL_MODULES", "a-b", "import path"),
        ("OPENAI_BASE_URL", "ftp://h", "http"),
        ("ANTHROPIC_BASE_URL", "api.anthropic.com", "http"),
        ("HTTP_TOOLS", "maybe", "on or off"),
    ],
)
def test_a_bad_value_is_told_in_one_line_with_its_name_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        Settings.load()
    told = str(error.value)
    assert told.startswith(f"{name}: {value!r} cannot be used: ")
    assert allowed in told
    assert "\n" not in told


def test_http_tools_are_only_switched_on_together_with_their_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_TOOLS", "on")
    with pytest.raises(SettingsError, match=r"^HTTP_TOOL_HOSTS: .* \* for any"):
        Settings.load()
    monkeypatch.setenv("HTTP_TOOL_HOSTS", "api.example.com, *.example.org")
    assert Settings.load().http_tool_hosts == ("api.example.com", "*.example.org")


def test_a_file_of_secrets_has_to_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRETS_FILE", str(tmp_path / "none.yaml"))
    with pytest.raises(SettingsError, match=r"^SECRETS_FILE: .* should be a file that exists$"):
        Settings.load()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/n", "secret", "postgresql://u:secret@h:port/n"])
@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_DIRECT_URL"])
def test_a_bad_database_url_is_told_without_its_password(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(SettingsError, match=f"^{name}: ") as error:
        Settings.load()
    assert "secret" not in str(error.value)


def test_secrets_stay_out_of_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h/n")
    assert "hunter2" not in repr(Settings.load())


@pytest.mark.parametrize("url", ["https://h/proxy", "https://h/proxy/", "https://h/proxy/v1", "https://h/proxy/v1/"])
def test_anthropics_address_may_be_given_with_its_version(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    assert Settings.load().anthropic_base_url == "https://h/proxy"
