from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.effects import ToolEffect
from app.engine.tools import ToolResult
from app.tools.builtin import calculate, current_time

Call = Callable[..., Awaitable[ToolResult]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 ** 2", -4),
        ("7 // 2", 3),
        ("7 % 4", 3),
        ("7 / 2", 3.5),
        ("2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("  +1  ", 1),
        ("min(3, 1, 2) + max(1, 5)", 6),
        ("round(2.675, 1)", 2.7),
        ("round(2.5)", 2),
        ("round(1250, -2)", 1200),
        ("abs(-3)", 3),
        ("sqrt(16)", 4.0),
        ("(1200 - 950) / 950 * 100", 26.31578947368421),
    ],
)
def test_arithmetic(expression: str, expected: float) -> None:
    assert calculate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "not an arithmetic expression"),
        ("1 +", "not an arithmetic expression"),
        ("1; 2", "not an arithmetic expression"),
        ("x + 1", "unknown name 'x'"),
        ("__import__('os')", "unknown name '__import__'"),
        ("(1).bit_length()", "not allowed"),
        ("[1, 2][0]", "not allowed"),
        ("'a' * 3", "not a real number"),
        ("True + 1", "not a real number"),
        ("1j", "not a real number"),
        ("(-8) ** 0.5", "not a real number"),
        ("1 if 1 else 2", "not allowed"),
        ("1 < 2", "not allowed"),
        ("2 << 100", "no such operator"),
        ("~1", "no such operator"),
        ("min()", "empty"),
        ("sqrt()", "wrong arguments for sqrt"),
        ("sqrt", "not allowed"),
        ("round(1, 2, 3)", "wrong arguments for round"),
        ("round(1, 1000)", "whole number of places"),
        ("round(5, -999999999)", "whole number of places"),
        ("max(*(1, 2))", "not allowed"),
        ("round(number=1)", "not allowed"),
        ("9 ** 9 ** 9", "too large"),
        ("10 ** 5000", "too large"),
        ("(10 ** 1000) * (10 ** 1000)", "too large"),
        ("1e308 * 10", "not a finite number"),
        ("10.0 ** 400", "too large"),
        ("1e999", "not a finite number"),
        ("-" * 100 + "1", "nested too deeply"),
        ("(" * 240 + "1" + ")" * 240, "not an arithmetic expression"),
        ("1" * 501, "more than 500 characters"),
        ("\x00", "not an arithmetic expression"),
    ],
)
def test_anything_else_is_refused(expression: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        calculate(expression)


def test_division_by_zero_says_so() -> None:
    with pytest.raises(ZeroDivisionError):
        calculate("1 / (2 - 2)")


@settings(deadline=None)
@given(st.text("0123456789.+-*/%() eE,minaxroudbsqt", max_size=60))
def test_no_expression_raises_more_than_an_arithmetic_error(expression: str) -> None:
    try:
        value = calculate(expression)
    except (ValueError, ArithmeticError):
        return
    assert isinstance(value, int | float)


def test_both_are_read_only() -> None:
    assert calculate.spec.effect is ToolEffect.READ_ONLY
    assert current_time.spec.effect is ToolEffect.READ_ONLY


async def test_a_model_can_call_them(call: Call) -> None:
    assert (await call(calculate, {"expression": "6 * 7"})).content == "42"
    assert (await call(calculate, {"expression": "1/0"})).error == "ZeroDivisionError: division by zero"
    assert (await call(calculate, {"expression": "2 ** 100"})).output == f'"{2**100}"'
    assert (await call(current_time)).success


def test_the_time_is_now_in_the_zone() -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    told = current_time("Europe/Paris")
    now = datetime.fromisoformat(told["time"])
    assert before <= now <= datetime.now(UTC)
    assert now.utcoffset() == now.astimezone(ZoneInfo("Europe/Paris")).utcoffset()
    assert told["weekday"] == now.strftime("%A")
    assert current_time()["timezone"] == "UTC"


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../../etc/passwd", "/etc/passwd", "Europe", "\x00"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="unknown time zone"):
        current_time(zone)
