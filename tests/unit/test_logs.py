"""Logs: one line an event, in one format, whoever wrote it."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator

import pytest
import structlog

from app.telemetry.logs import LogLevel, configure_logging, get_logger


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in logging.root.manager.loggerDict:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    structlog.reset_defaults()


def test_json_lines_carry_values_levels_and_utc_times(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    get_logger("app.engine").info("claimed", run_id="r1", n=2)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "claimed", "level": "info", "logger": "app.engine", "run_id": "r1", "n": 2}


def test_the_server_speaks_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    logging.getLogger("uvicorn.error").info("Started %s", "x", extra={"color_message": "\x1b[1mStarted"})
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "Started x"
    assert "color_message" not in line


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    try:
        raise ValueError("why")
    except ValueError:
        get_logger("app.worker").exception("failed")
    assert "ValueError: why" in json.loads(capsys.readouterr().err)["exception"]


def test_every_logger_speaks_from_the_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    logging.getLogger("my_tools").info("by logging")
    structlog.get_logger().info("by structlog")
    logging.getLogger("my_tools").debug("detail")
    get_logger("app.api").debug("detail")
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["logger"]) for line in told] == [
        ("by logging", "my_tools"),
        ("by structlog", __name__),
    ]


@pytest.mark.parametrize("name", ["LiteLLM", "httpx", "mcp.client.streamable_http", "sqlalchemy.engine", "urllib3"])
@pytest.mark.parametrize("level", ["info", "warning", "debug", "error"])
def test_libraries_that_tell_of_each_request_speak_from_warning_on(
    name: str, level: LogLevel, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json", level)
    for told in (logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(told, "a line")
    heard = [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()]
    assert (
        heard
        == {
            "debug": ["info", "warning", "error"],
            "info": ["warning", "error"],
            "warning": ["warning", "error"],
            "error": ["error"],
        }[level]
    )


def test_migrations_are_told_though_their_library_is_talkative(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    logging.getLogger("alembic.runtime.plugins").info("setup plugin")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["Running upgrade"]


def test_vain_attempts_of_a_pool_to_connect_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncpg's words of 0.32. Seen to fail without the filter."""
    configure_logging("console", "debug")
    pool = logging.getLogger("asyncpg.pool")
    try:
        raise ConnectionRefusedError("why")
    except ConnectionRefusedError:
        pool.warning("Failed to restore the pool connection floor; retrying", exc_info=True)
    pool.warning("Pool.close() is taking over 60 seconds to complete.")
    told = capsys.readouterr().err
    assert "connection floor" not in told
    assert "Traceback" not in told
    assert "over 60 seconds" in told
