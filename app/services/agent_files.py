"""Agents as YAML files: one file, one definition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError

from app.engine.agent import AgentDefinition
from app.services.complaints import complaints_of
from app.services.errors import ServiceError

_SUFFIXES = frozenset({".yaml", ".yml"})


class AgentFileError(ServiceError):
    """An agent's file cannot be used; the message names the file and the field."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


def read_agent_files(directory: Path) -> dict[Path, AgentDefinition]:
    """The definitions of a folder's `*.yaml` files, by file, in the order of their names; no folder, none.

    Raises:
        AgentFileError: a file cannot be read, is no YAML or no definition, or two files name one agent.
    """
    if not directory.is_dir():
        return {}
    definitions: dict[Path, AgentDefinition] = {}
    files: dict[str, Path] = {}
    for path in sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES):
        definition = read_agent_file(path)
        earlier = files.setdefault(definition.name, path)
        if earlier is not path:
            raise AgentFileError(path, f"name: the agent {definition.name!r} is in {earlier} too")
        definitions[path] = definition
    return definitions


def read_agent_file(path: Path) -> AgentDefinition:
    """One definition; raises as `read_agent_files` does."""
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AgentFileError(path, f"cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise AgentFileError(path, f"is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise AgentFileError(path, "should hold an agent's fields, such as `name:` and `model:`")
    try:
        return AgentDefinition.model_validate(content)
    except ValidationError as error:
        location, problem = complaints_of(error, cast("object", content))[0]
        raise AgentFileError(path, f"{field_of(location)}: {problem}") from error


def field_of(location: Sequence[str | int]) -> str:
    """A place in a definition as text, such as `limits.max_steps`."""
    return ".".join(map(str, location)) or "the definition"
