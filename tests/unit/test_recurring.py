"""Failures that come again and again: what the log says of them, and in which words."""

from __future__ import annotations

import asyncpg
from structlog.testing import capture_logs

from app.db.connecting import Bounds, failure
from app.engine.store_errors import StoreUnavailable, reason_of
from app.telemetry.logs import get_logger
from app.telemetry.recurring import TOLD_EVERY_S, Recurring


def test_a_failure_that_comes_again_is_told_every_few_seconds_and_another_kind_at_once() -> None:
    """Seen to fail without the look at the clock, and with one time for all kinds."""
    now = 0.0
    with capture_logs() as logs:
        failures = Recurring(get_logger(__name__), "work_failed", lambda: now)
        for number in range(5):
            failures.failed("away", number=number)
            now += TOLD_EVERY_S / 4
        failures.failed("full", number=5)
    assert [(line["number"], line["log_level"]) for line in logs] == [
        (0, "warning"),
        (1, "debug"),
        (2, "debug"),
        (3, "debug"),
        (4, "warning"),
        (5, "warning"),
    ]
    assert {line["event"] for line in logs} == {"work_failed"}


def test_what_the_driver_says_of_its_insides_is_not_shown() -> None:
    """Seen to fail without the branch for the driver's internal errors."""
    inside = asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
    told = reason_of(failure(inside, Bounds("api", "requests", None, most=1, acquire_s=1, statement_s=1)))
    assert told == "the database does not answer; try again (the connection broke)"


def test_a_failure_without_a_reason_is_told_without_one() -> None:
    """Seen to fail with a type's name in the place of the reason that is not there."""
    assert reason_of(StoreUnavailable("this replica is shutting down")) == "this replica is shutting down"
    assert reason_of(StoreUnavailable("no answer", TimeoutError())) == "no answer (TimeoutError)"
