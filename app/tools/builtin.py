"""Tools that every replica has: arithmetic and the time."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from app.tools.function_tool import tool

_MAX_CHARS = 500
_MAX_DEPTH = 50
_MAX_BITS = 4096  # of an integer anywhere in the calculation, about 1 200 digits
_MAX_PLACES = 100

Number = int | float


def _power(base: Number, exponent: Number) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_BITS:
        raise ValueError("the power is too large")
    return base**exponent


def _divide(left: Number, right: Number) -> Number:
    return left / right


def _floor_divide(left: Number, right: Number) -> Number:
    return left // right


def _round(value: Number, places: Number = 0) -> Number:
    if not isinstance(places, int) or abs(places) > _MAX_PLACES:
        raise ValueError(f"round takes a whole number of places up to {_MAX_PLACES}")
    return round(value, places) if places else round(value)


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "round": _round,
    "sqrt": math.sqrt,
}


@tool(effect="read_only", timeout_s=5)
def calculate(
    expression: Annotated[str, Field(max_length=_MAX_CHARS, examples=["(1200 - 950) / 950 * 100"])],
) -> int | float:
    """Evaluate an arithmetic expression: + - * / // % ** and parentheses, and min, max, round, abs, sqrt.

    Args:
        expression: numbers, operators and functions only, such as `round(sqrt(2) * 100, 2)`.
    """
    if len(expression) > _MAX_CHARS:
        raise ValueError(f"the expression has more than {_MAX_CHARS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an arithmetic expression: {error}") from error
    return _value(tree.body, 0)


def _value(node: ast.expr, depth: int) -> Number:
    if depth > _MAX_DEPTH:
        raise ValueError("the expression is nested too deeply")
    match node:
        case ast.Constant(value=constant):
            return _checked(constant)
        case ast.UnaryOp(op=op, operand=operand):
            return _applied(type(op), _value(operand, depth + 1))
        case ast.BinOp(left=left, op=op, right=right):
            return _applied(type(op), _value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _called(name, [_value(argument, depth + 1) for argument in arguments])
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)) if name not in _FUNCTIONS:
            raise ValueError(f"unknown name {name!r}; the functions are {', '.join(_FUNCTIONS)}")
        case _:
            raise ValueError(f"not allowed in an arithmetic expression: {type(node).__name__}")


def _applied(op: type[ast.AST], *operands: Number) -> Number:
    if op not in _OPERATORS:
        raise ValueError(f"no such operator here: {op.__name__}")
    try:
        return _checked(_OPERATORS[op](*operands))
    except OverflowError as error:
        raise ValueError("the result is too large") from error


def _called(name: str, arguments: list[Number]) -> Number:
    try:
        return _checked(_FUNCTIONS[name](*arguments))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"wrong arguments for {name}: {error}") from error


def _checked(value: object) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a real number: {value!r}")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError("the number is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the result is not a finite number")
    return value


@tool(effect="read_only", timeout_s=5)
def current_time(
    timezone: Annotated[str, Field(examples=["Europe/Paris"])] = "UTC",
) -> dict[str, str]:
    """Tell the current date and time in a time zone.

    Args:
        timezone: an IANA name such as `Europe/Paris`.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {timezone!r}; use an IANA name such as Europe/Paris or UTC") from error
    now = datetime.now(zone)
    return {"time": now.isoformat(timespec="seconds"), "weekday": now.strftime("%A"), "timezone": timezone}
