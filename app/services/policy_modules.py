"""The operator's policy: the rules in the Python modules that POLICY_MODULES names."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import cast

from app.engine.policy import PolicyEngine, PolicyRule, Rule
from app.services.errors import ServiceError
from app.tools.raised import Raised


class PolicyModuleError(ServiceError):
    """A module of POLICY_MODULES cannot be used; the message names it and says why."""


def load_policy_modules(names: Iterable[str]) -> PolicyEngine:
    """Import the operator's modules and gather every PolicyRule and PolicyEngine at their top level into one engine.

    A rule that is met twice, because an engine holds it or two modules import it, counts once.

    Raises:
        PolicyModuleError: a module cannot be imported, has no rules, or brings a rule_id that is taken.
    """
    rules: dict[str, PolicyRule | Rule] = {}
    origins: dict[str, str] = {}
    for name in names:
        found = _rules_in(_module(name))
        if found is None:
            raise PolicyModuleError(
                f"POLICY_MODULES names {name!r}, which has no PolicyRule or PolicyEngine at its top level"
            )
        for rule in found:
            rule_id = rule.rule.rule_id if isinstance(rule, PolicyRule) else rule.rule_id
            if rules.setdefault(rule_id, rule) is not rule:
                raise PolicyModuleError(
                    f"POLICY_MODULES names {name!r}, which has a rule {rule_id!r}, as {origins[rule_id]!r} has; "
                    "give one of them another rule_id"
                )
            origins.setdefault(rule_id, name)
    return PolicyEngine(list(rules.values()))


def _rules_in(module: ModuleType) -> list[PolicyRule | Rule] | None:
    """The rules at a module's top level, or None if it holds neither rules nor engines."""
    values = cast("dict[str, object]", vars(module)).values()
    sources = [value for value in values if isinstance(value, PolicyRule | PolicyEngine)]
    if not sources:
        return None
    return [rule for each in sources for rule in ([each] if isinstance(each, PolicyRule) else each.rules)]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise PolicyModuleError(
            f"POLICY_MODULES names {name!r}, which cannot be imported: {Raised(error).summary}"
        ) from error
