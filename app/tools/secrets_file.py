"""The file of the operator's secrets, which the setting SECRETS_FILE names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.tools.errors import ToolSettingError
from app.tools.hosts import HostPattern, HostPatterns
from app.tools.secrets import MIN_CHARS, Secret, Secrets

_MAX_BYTES = 1024 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _host(text: str) -> str:
    pattern = HostPattern.parse(text)
    if pattern.is_any or pattern.port is not None:
        raise ValueError("should be a host's name, an address, or *.name, without a port")
    return text


class _Entry(BaseModel):
    """One secret; its value stands here or in a variable of the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    value: str | None = Field(default=None, repr=False, min_length=MIN_CHARS, max_length=65_536)
    env: str | None = Field(default=None, min_length=1, max_length=200)
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(default_factory=list[str], max_length=100)

    @model_validator(mode="after")
    def _has_one_source(self) -> _Entry:
        if (self.value is None) is (self.env is None):
            raise ValueError("should have either a value or an env")
        return self


def read_secrets(path: Path, environment: Mapping[str, str]) -> Secrets:
    """The secrets of a YAML file: `name: {value: "...", hosts: [api.example.com, "*.example.org"]}`, or `env: VARIABLE`
    in place of the value. A secret without hosts is for Python tools only.

    Args:
        environment: where `env` is looked up.

    Raises:
        ToolSettingError: the file cannot be used; one line for each problem, with the place and without any value.
    """
    entries = _content(path)
    secrets: dict[str, Secret] = {}
    problems: list[str] = []
    for name, content in entries.items():
        try:
            entry = _Entry.model_validate(content)
            secrets[name] = Secret(_value(entry, environment), HostPatterns.parse(entry.hosts))
        except ValidationError as error:
            problems += _problems(name, error)
        except ValueError as error:
            problems.append(f"{name}.env: {error}")
    if problems:
        raise _unusable(path, *problems)
    return Secrets(secrets)


def _content(path: Path) -> dict[str, Any]:
    """The file as YAML. What its parser says is not repeated, since it says it with pieces of the text."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise _unusable(path, f"cannot be read: {reason}") from None
    if len(text) > _MAX_BYTES:
        raise _unusable(path, f"is larger than {_MAX_BYTES} bytes")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}
        _check_names(path, root)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _unusable(path, f"is no YAML{place}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise _unusable(path, "is no YAML") from None


def _check_names(path: Path, root: yaml.Node) -> None:
    if not isinstance(root, yaml.MappingNode):
        raise _unusable(path, "should hold secrets by name, each with a value or an env")
    _check_twice(path, root)
    for key, content in root.value:
        # A value may have slipped in the place of a name, so only its line is told.
        if key.tag != "tag:yaml.org,2002:str" or not _NAME.fullmatch(key.value):
            line = key.start_mark.line + 1
            raise _unusable(path, f"line {line}: a name has up to 64 letters, digits and _, and begins with no digit")
        if isinstance(content, yaml.MappingNode):
            _check_twice(path, content)


def _check_twice(path: Path, mapping: yaml.MappingNode) -> None:
    """Of two equal keys YAML would take the last, without a word."""
    seen: set[str] = set()
    for key, _ in mapping.value:
        if str(key.value) in seen:
            raise _unusable(path, f"line {key.start_mark.line + 1}: the same name a second time")
        seen.add(str(key.value))


def _value(entry: _Entry, environment: Mapping[str, str]) -> str:
    if entry.env is None:
        return entry.value or ""
    value = environment.get(entry.env)
    if value is None:
        raise ValueError("the environment has no such variable")
    if len(value) < MIN_CHARS:
        raise ValueError(f"the variable should have at least {MIN_CHARS} characters")
    return value


def _problems(name: str, error: ValidationError) -> list[str]:
    lines: list[str] = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        steps = [name, *(str(step) for step in problem["loc"])]
        said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        match problem["type"]:
            case "extra_forbidden":
                # The field's name is not told: it may be a value that lost its quotes.
                steps, said = steps[:-1], "has a field besides value, env and hosts"
            case "model_type":
                said = "should have a value or an env, and hosts"
            case _:
                pass
        lines.append(f"{'.'.join(steps)}: {said}")
    return lines


def _unusable(path: Path, *problems: str) -> ToolSettingError:
    return ToolSettingError("\n".join(f"SECRETS_FILE: {path}: {problem}" for problem in problems))
