"""A small CSV file as a table that can be described, filtered, grouped and aggregated."""

from __future__ import annotations

import csv
import io
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

Row = dict[str, str]
Operator = Literal["=", "!=", "<", "<=", ">", ">=", "contains"]
Measure = Literal["count", "sum", "mean", "min", "max"]

_MAX_DISTINCT = 12
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class TableError(ValueError):
    """A question that the table cannot answer; the message is for the model."""


class Condition(BaseModel):
    """What a row must fulfil. Numbers are compared as numbers, all else as text (so `2024-07` works for months)."""

    column: str
    operator: Operator = "="
    value: str | float = Field(description="The value to compare with.")


class CsvTable:
    """Rows of text under named columns."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        self.columns = list(columns)
        self.rows = list(rows)

    @classmethod
    def parse(cls, text: str) -> CsvTable:
        """Read CSV with a header line; the separator may be a comma, a semicolon or a tab."""
        header = text.split("\n", 1)[0]
        separator = max(",;\t", key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restkey="", restval="")
        try:
            rows = [{name: row[name].strip() for name in reader.fieldnames or ()} for row in reader]
        except csv.Error as error:
            raise TableError(f"not a CSV file: {error}") from error
        if not reader.fieldnames:
            raise TableError("the file is empty")
        return cls(reader.fieldnames, rows)

    def where(self, conditions: Sequence[Condition]) -> CsvTable:
        """The rows that fulfil all conditions."""
        for condition in conditions:
            self._check(condition.column)
        return CsvTable(self.columns, [row for row in self.rows if all(_holds(row, c) for c in conditions)])

    def grouped(self, column: str) -> dict[str, CsvTable]:
        """One table for each value of a column, in the order of the values' first rows."""
        self._check(column)
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row[column], []).append(row)
        return {value: CsvTable(self.columns, rows) for value, rows in groups.items()}

    def measured(self, measure: Measure, column: str | None) -> float | None:
        """One number for the whole table; None for a mean, least or greatest of nothing."""
        if measure == "count":
            return len(self.rows)
        if column is None:
            raise TableError(f"{measure} needs a column; the columns are: {', '.join(self.columns)}")
        numbers = self._numbers(column)
        match measure:
            case "sum":
                return _rounded(math.fsum(numbers))
            case "mean":
                return _rounded(math.fsum(numbers) / len(numbers)) if numbers else None
            case "min":
                return min(numbers, default=None)
            case "max":
                return max(numbers, default=None)

    def described(self) -> list[dict[str, Any]]:
        """Every column: its type, and its range and sum if it holds numbers, else its most frequent values."""
        return [self._described(column) for column in self.columns]

    def _described(self, column: str) -> dict[str, Any]:
        values = [row[column] for row in self.rows if row[column]]
        description: dict[str, Any] = {"column": column, "empty": len(self.rows) - len(values)}
        if values and all(_number(value) is not None for value in values):
            measures: tuple[Measure, ...] = ("min", "max", "mean", "sum")
            return description | {"type": "number"} | {m: self.measured(m, column) for m in measures}
        counts: dict[str, int] = {}
        for value in values:
            counts[value] = counts.get(value, 0) + 1
        frequent = sorted(counts.items(), key=lambda item: -item[1])[:_MAX_DISTINCT]
        return description | {"type": "text", "distinct": len(counts), "most_frequent": dict(frequent)}

    def _numbers(self, column: str) -> list[float]:
        self._check(column)
        numbers: list[float] = []
        for row in self.rows:
            number = _number(row[column])
            if number is not None:
                numbers.append(number)
            elif row[column]:
                raise TableError(f"column {column!r} holds {row[column]!r}, which is not a number")
        return numbers

    def _check(self, column: str) -> None:
        if column not in self.columns:
            raise TableError(f"there is no column {column!r}; the columns are: {', '.join(self.columns)}")


def _holds(row: Row, condition: Condition) -> bool:
    cell = row[condition.column]
    if condition.operator == "contains":
        return str(condition.value).casefold() in cell.casefold()
    left, right = _number(cell), _number(str(condition.value))
    if left is None or right is None:
        return _COMPARISONS[condition.operator](cell.casefold(), str(condition.value).casefold())
    return _COMPARISONS[condition.operator](left, right)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _rounded(number: float) -> float:
    """Without the digits that binary fractions add to sums of prices."""
    return round(number, 6)
