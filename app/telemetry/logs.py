"""Structured logs: one event a line, readable on a console or as JSON, our loggers and libraries' alike."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import Processor

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Libraries that tell of each request or connection at the level of information, by the first name of their loggers.
_TALKATIVE = (
    "LiteLLM",
    "LiteLLM Proxy",
    "LiteLLM Router",
    "aiohttp",
    "alembic",
    "anyio",
    "asyncio",
    "asyncpg",
    "boto3",
    "botocore",
    "google",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "mcp",
    "openai",
    "opentelemetry",
    "requests",
    "sqlalchemy",
    "sse_starlette",
    "urllib3",
)
# One of them whose lines belong to the service's own story.
_TOLD_WITH_OURS = "alembic.runtime.migration"


def configure_logging(log_format: LogFormat, level: LogLevel) -> None:
    """Send every log line of this process to stderr in one format. May be called again.

    Args:
        log_format: `console` for people, `json` for one JSON object a line.
        level: The lowest level that is written, of whatever logger; libraries that tell of each request are heard from
            warning on, except at `debug`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_foreign_marks,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format), _redacted],
        )
    )
    logging.getLogger("asyncpg.pool").addFilter(_calmly)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(threshold if level == "debug" else max(threshold, logging.WARNING))
    logging.getLogger(_TOLD_WITH_OURS).setLevel(threshold)


def redact_logs(redact: Callable[[str], str]) -> None:
    """Pass every line that this process logs from now on through `redact`, in place of an earlier one.

    It gets the line as it is written, exceptions and what libraries say included; in any thread.
    """
    _redaction[:] = [redact]


def redacted(text: str) -> str:
    """A text that leaves this process, without what lines of the log are not to tell."""
    for redact in _redaction:
        text = redact(text)
    return text


def bind_run(run_id: str) -> None:
    """From now on every line that is logged in this task, or in what it starts, names the run."""
    structlog.contextvars.bind_contextvars(run_id=run_id)


def name_traces(current: Callable[[], Mapping[str, str]]) -> None:
    """From now on every line has what `current` gives where it is logged: the ids of its trace, if it is in one."""
    _naming[:] = [current]


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; `name` is its `__name__`. Values are keywords: `log.info("claimed", n=3)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _renderers(log_format: LogFormat) -> list[Processor]:
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]
    # Not its own way with tracebacks: that shows local variables too, and with them passwords and people's texts.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


_redaction: list[Callable[[str], str]] = []


def _redacted(_logger: Any, _method: str, line: Any) -> Any:
    return redacted(line)


_naming: list[Callable[[], Mapping[str, str]]] = []


def _with_trace(_logger: Any, _method: str, event: structlog.typing.EventDict) -> Any:
    for current in _naming:
        event.update(current())
    return event


def _drop_foreign_marks(_logger: Any, _method: str, event: structlog.typing.EventDict) -> Any:
    """What libraries hang on records for themselves; uvicorn sends each line again with terminal colours in it."""
    event.pop("color_message", None)
    event.pop("litellm_redacted", None)  # a mark that litellm puts on every record of the process
    return event


def _calmly(record: logging.LogRecord) -> bool:
    """asyncpg's pools tell of each vain attempt to connect, with a traceback. While a database is away that says
    nothing new: whoever wanted the connection tells why there is none."""
    record.exc_info = record.exc_text = None
    return not record.getMessage().startswith("Failed to restore the pool connection floor")


# A program that only uses the Python surface configures nothing: it hears of trouble, on stderr, and of nothing else.
if not structlog.is_configured():
    structlog.configure(
        processors=[_with_trace, *structlog.get_config()["processors"], _redacted],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
