"""Where an agent's memories are, in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from app.engine.agent import PLACEHOLDER, AgentDefinition, value_at
from app.engine.memories import MAX_NAMESPACE_CHARS, MemoryRefused

_USER_ID = "user_id"
# Besides letters, digits, `_`, `.`, `-` and `~`. A slash would lead out of its place, and a percent sign make one name
# of two.
_AS_THEY_ARE = "@:+,="


class NoNamespace(MemoryRefused):
    """A run lacks what its agent's memories are kept by; the text says what."""


def memory_namespace(agent: AgentDefinition, context: Mapping[str, Any], user_id: str | None) -> str:
    """The namespace of an agent's memories: its `memory_namespace`, filled from the run; else one for each user.

    What is filled in is percent-encoded, so that no value can name another's place.

    Raises:
        NoNamespace: a placeholder has no value here. Nothing is kept in a place that others share by accident.
    """
    template = agent.memory_namespace
    if template is None:
        if not user_id:
            raise NoNamespace(
                "this agent's memories are kept for each user, and the run has no user_id: give the run one, or the "
                "agent a memory_namespace"
            )
        return _bounded(f"agents/{agent.name}/users/{quote(user_id, safe=_AS_THEY_ARE)}")
    values = {**agent.context_defaults, **context}
    if user_id is not None:
        values[_USER_ID] = user_id
    return _bounded(PLACEHOLDER.sub(lambda match: _filled(match[1], values), template))


def _filled(path: str, values: dict[str, Any]) -> str:
    try:
        value = value_at(path, values)
    except KeyError:
        value = None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise NoNamespace(f"memory_namespace: the run has no text or whole number for {{{{ {path} }}}}")
    return quote(str(value), safe=_AS_THEY_ARE)


def _bounded(namespace: str) -> str:
    if len(namespace) > MAX_NAMESPACE_CHARS:
        raise NoNamespace(f"memory_namespace: with its values it has more than {MAX_NAMESPACE_CHARS} characters")
    return namespace
