"""Google-style docstrings, read for what a model needs: the first paragraph and the Args section.

Format: https://google.github.io/styleguide/pyguide.html#383-functions-and-methods
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_ARGS_HEADER = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_ENTRY = re.compile(r"^\*{0,2}(?P<name>\w+)\s*(\([^)]*\))?\s*:\s*(?P<text>.*)$")


@dataclass(frozen=True, slots=True)
class Docstring:
    """The first paragraph on one line, and the description of each parameter that has one."""

    summary: str
    parameters: dict[str, str]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Docstring:
        lines = inspect.cleandoc(function.__doc__ or "").splitlines()
        return cls(_first_paragraph(lines), _descriptions(lines))


def _first_paragraph(lines: list[str]) -> str:
    paragraph: list[str] = []
    for line in lines:
        if not line.strip() or _ARGS_HEADER.match(line):
            break
        paragraph.append(line.strip())
    return " ".join(paragraph)


def _descriptions(lines: list[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    name: str | None = None
    margin: int | None = None
    for line in _args_section(lines):
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else margin
        if indent <= margin and (entry := _ENTRY.match(line.strip())):
            name = str(entry["name"])
            parameters[name] = entry["text"].strip()
        elif name is not None:
            parameters[name] = f"{parameters[name]} {line.strip()}".strip()
    return {name: text for name, text in parameters.items() if text}


def _args_section(lines: list[str]) -> Iterator[str]:
    """The non-blank lines under the Args header, up to the next line that is not indented."""
    inside = False
    for line in lines:
        if _ARGS_HEADER.match(line):
            inside = True
        elif inside and line.strip():
            if not line[0].isspace():
                return
            yield line
