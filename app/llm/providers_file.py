"""The operator's file of model providers, which the setting PROVIDERS_FILE names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.llm.circuit_breaker import CircuitLimits
from app.llm.model_names import OFFLINE, litellm_prefixes
from app.llm.providers import OpenAIServer, Provider
from app.llm.rate_limit import RateLimit

_MAX_BYTES = 1024 * 1024
_MAX_DEPTH = 16
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,47}")
_CIRCUIT, _LIMIT = CircuitLimits(), RateLimit()
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_HEADER_TEXT = re.compile(r"[\x21-\x7e]+")


class ProvidersFileError(ValueError):
    """The file cannot be used; one line for each problem, with the file and the place, and no key."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class _FromEnvironment(_Data):
    env: str = Field(min_length=1, max_length=200)


class _CircuitBreaker(_Data):
    failures: int = Field(default=_CIRCUIT.failures, ge=1, le=1000)
    open_s: float = Field(default=_CIRCUIT.open_s, gt=0, le=3600)


class _Entry(_Data):
    """One provider."""

    client: Literal["openai"] | None = None
    base_url: str | _FromEnvironment | None = None
    api_key: str | _FromEnvironment | None = Field(default=None, repr=False)
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000)
    rate_limit_wait_s: float = Field(default=_LIMIT.wait_s, ge=0, le=3600)
    circuit_breaker: _CircuitBreaker = _CircuitBreaker()


def read_providers(path: Path, environment: Mapping[str, str]) -> dict[str, Provider]:
    """The providers of a YAML file, by name: `name: {client: openai, base_url: ..., requests_per_minute: 60, ...}`.

    A `base_url` and an `api_key` stand there as text or as `{env: VARIABLE}`.

    Args:
        environment: where variables are looked up.

    Raises:
        ProvidersFileError: the file cannot be used.
    """
    providers: dict[str, Provider] = {}
    problems: list[str] = []
    for name, content in _content(path).items():
        try:
            problem = _problem_with_name(name)
            if problem is not None:
                raise ValueError(problem)
            providers[name] = _provider(name, _Entry.model_validate(content), environment)
        except ValidationError as error:
            problems += _problems(name, error)
        except ValueError as error:
            problems.append(f"{name}{'' if str(error).startswith('.') else ': '}{error}")
    if problems:
        raise _unusable(path, *problems)
    return providers


def _provider(name: str, entry: _Entry, environment: Mapping[str, str]) -> Provider:
    """Raises ValueError: how the entry cannot be used, beginning with the field where it is one field's fault."""
    server = None
    if entry.client is None and (entry.base_url is not None or entry.api_key is not None):
        raise ValueError(_where_a_server_is_set(name))
    if entry.client is not None:
        base_url = _base_url(_value(entry.base_url, "base_url", environment))
        if base_url is None and name != "openai":
            raise ValueError(".base_url: is needed, such as http://127.0.0.1:8080/v1")
        server = OpenAIServer(base_url, _api_key(_value(entry.api_key, "api_key", environment)))
    elif name not in ("openai", *litellm_prefixes()):
        raise ValueError(f"{name}/ is no provider that is known; one of your own needs client: openai and a base_url")
    return Provider(
        server,
        RateLimit(entry.requests_per_minute, entry.tokens_per_minute, entry.rate_limit_wait_s),
        CircuitLimits(entry.circuit_breaker.failures, entry.circuit_breaker.open_s),
    )


def _where_a_server_is_set(name: str) -> str:
    """What to do instead of naming a server for a prefix that has a client already."""
    match name:
        case "openai":
            return "base_url and api_key need client: openai; without it OPENAI_BASE_URL and OPENAI_API_KEY say both"
        case "anthropic":
            return "has no base_url or api_key here: ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY say both"
        case _ if name in litellm_prefixes():
            return (
                "has no base_url or api_key here: litellm reads both from variables of its own, "
                f"such as {name.upper()}_API_KEY; a server that speaks as OpenAI's does needs client: openai"
            )
        case _:
            return "base_url and api_key need client: openai"


def _value(given: str | _FromEnvironment | None, field: str, environment: Mapping[str, str]) -> str | None:
    if not isinstance(given, _FromEnvironment):
        return given
    value = environment.get(given.env)
    if not value:
        # A key that was put in the variable's place stays untold.
        named = f"{given.env} is" if _VARIABLE.fullmatch(given.env) else "the variable is"
        raise ValueError(f".{field}.env: {named} not in the environment, or empty; what .env holds does not count")
    return value


def _base_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(".base_url: should be an http:// or https:// URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError(".base_url: should be an http:// or https:// URL with a host, and without credentials")
    return url.rstrip("/")


def _api_key(key: str | None) -> str | None:
    if key is not None and not _HEADER_TEXT.fullmatch(key):
        raise ValueError(".api_key: should be visible ASCII characters without spaces")
    return key


def _problem_with_name(name: object) -> str | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "a provider's name has up to 48 letters, digits, _, . and -, and begins with a letter"
    return f"{name}/ answers offline and has nothing to set" if name in OFFLINE else None


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
        if not isinstance(root, yaml.MappingNode):
            raise _unusable(path, "should hold providers by name, each with its settings")
        _check_twice(path, root, depth=0)
        return yaml.safe_load(text)
    except ProvidersFileError:
        raise
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _unusable(path, f"is no YAML{place}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise _unusable(path, "is no YAML") from None


def _check_twice(path: Path, mapping: yaml.MappingNode, depth: int) -> None:
    """Of two equal keys YAML would take the last, without a word."""
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError
    seen: set[str] = set()
    for key, value in mapping.value:
        if str(key.value) in seen:
            raise _unusable(path, f"line {key.start_mark.line + 1}: the same name a second time")
        seen.add(str(key.value))
        if isinstance(value, yaml.MappingNode):
            _check_twice(path, value, depth + 1)


def _problems(name: object, error: ValidationError) -> list[str]:
    told = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a field that holds a mapping only what is wrong inside of it is told.
    mappings = {each["loc"][0] for each in told if each["loc"][1:2] == (_FromEnvironment.__name__,) and each["loc"][2:]}
    lines: dict[str, None] = {}
    for problem in told:
        place, said = problem["loc"], problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        in_union = place[1:] in (("str",), (_FromEnvironment.__name__,))
        if in_union and place[0] in mappings:
            continue
        # pydantic names the members of a union by their types, which are not in the file.
        steps = [str(step) for step in place if step not in ("str", _FromEnvironment.__name__)]
        if problem["type"] == "extra_forbidden":
            said = _no_such_setting(steps)
        elif in_union:
            said = "should be text (in quotes if it is a number), or {env: VARIABLE}"
        elif problem["type"] == "model_type":
            said = "should have settings of its own"
        lines[f"{'.'.join([str(name), *steps])}: {said}"] = None
    return list(lines)


def _no_such_setting(steps: list[str]) -> str:
    """Args: steps: what leads to the name that is not known, itself included."""
    match steps[:-1]:
        case ["circuit_breaker"]:
            known = list(_CircuitBreaker.model_fields)
        case [_, *_]:
            known = list(_FromEnvironment.model_fields)
        case _:
            known = list(_Entry.model_fields)
    close = get_close_matches(steps[-1], known, n=1)
    return f"there is no such setting; {f'did you mean {close[0]}?' if close else 'there are: ' + ', '.join(known)}"


def _unusable(path: Path, *problems: str) -> ProvidersFileError:
    return ProvidersFileError("\n".join(f"PROVIDERS_FILE: {path}: {problem}" for problem in problems))
