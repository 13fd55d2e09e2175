"""Policy: rules that say what a run may do, as data or as Python predicates, and the verdict on one deed. Pure."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from app.engine.deed import Deed, PolicySubject
from app.engine.effort import Effort, TooMuchEffort
from app.engine.json_path import JsonDocument
from app.engine.policy_condition import ArgumentTest, Condition
from app.telemetry.logs import get_logger

MAX_EFFORT = 100_000  # for one verdict, all rules together: about 0.1 s of the event loop

_MAX_FRAMES = 5

_log = get_logger(__name__)


class PolicyAction(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    REQUEST_APPROVAL = "request_approval"
    REQUEST_USER_INPUT = "request_user_input"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rule(_Data):
    """What is to be done where a condition holds. Of the rules that match, the highest `priority` decides, and among
    equals the `rule_id` that sorts first.
    """

    rule_id: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(examples=["no-big-refunds"])
    action: PolicyAction
    subjects: list[PolicySubject] = Field(min_length=1, max_length=len(PolicySubject))
    condition: Condition = Field(default=Condition(), description="By default, always.")
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000, strict=True)
    reason: str | None = Field(default=None, max_length=2000, description="For the model, for people and in the log.")
    arguments: dict[str, Any] | None = Field(
        default=None,
        description="Takes the place of the call's arguments of these names; not with `deny`.",
        examples=[{"dry_run": True}],
    )

    @field_validator("condition")
    @classmethod
    def _can_hold(cls, condition: Condition, info: ValidationInfo) -> Condition:
        if _only_model_calls(info) and (condition.tool_name is not None or condition.arguments):
            raise ValueError("model calls have neither a tool_name nor arguments; add another subject")
        return condition

    @field_validator("arguments")
    @classmethod
    def _have_a_use(cls, arguments: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if arguments is not None and info.data.get("action") is PolicyAction.DENY:
            raise ValueError("a call that is denied needs no arguments")
        if arguments is not None and _only_model_calls(info):
            raise ValueError("model calls have no arguments; add another subject")
        return arguments


class PolicyRule:
    """An operator's rule, written in Python.

    PolicyRule(
        rule_id="no-big-refunds",
        action="deny",
        subjects=["tool_call"],
        tool_name="refund",
        predicate=lambda deed: deed.arguments["amount"] > 100,
        reason="refunds over 100 need a person",
    )

    Args:
        tool_name, agent_name, context: see `Condition`.
        argument_tests: see `ArgumentTest`; objects of it, or mappings with its fields.
        predicate: called with the deed where the rest of the condition holds, and must return True or False. It runs
            on the event loop: it has to be quick, does no I/O, keeps nothing and changes nothing, since it may be
            asked about the same deed again. If it raises or returns anything else, the deed is denied.
        priority, reason, arguments: see `Rule`.

    Raises:
        pydantic.ValidationError: a field has a wrong value.
        TypeError: the predicate is a coroutine function.
    """

    __slots__ = ("predicate", "rule")

    def __init__(
        self,
        *,
        rule_id: str,
        action: PolicyAction | str,
        subjects: Sequence[PolicySubject | str],
        tool_name: str | None = None,
        agent_name: str | None = None,
        argument_tests: Sequence[ArgumentTest | Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        predicate: Callable[[Deed], bool] | None = None,
        priority: int = 0,
        reason: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if inspect.iscoroutinefunction(predicate):
            raise TypeError(f"rule {rule_id!r}: the predicate should be a plain function, not an async one")
        condition = {
            "tool_name": tool_name,
            "agent_name": agent_name,
            "arguments": list(argument_tests),
            "context": dict(context or {}),
        }
        self.predicate = predicate
        self.rule = Rule.model_validate(
            {
                "rule_id": rule_id,
                "action": action,
                "subjects": list(subjects),
                "condition": condition,
                "priority": priority,
                "reason": reason,
                "arguments": None if arguments is None else dict(arguments),
            }
        )

    def __repr__(self) -> str:
        return f"PolicyRule({self.rule.rule_id!r}, {self.rule.action.value})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    Args:
        rule_id: the rule that decided; None where none matched, and the deed is allowed.
        matched_rules: the ids of all rules that matched, the deciding one first.
        arguments: the deed's arguments as the deciding rule changes them, or None if it does not.
    """

    action: PolicyAction
    reason: str | None = None
    rule_id: str | None = None
    matched_rules: tuple[str, ...] = ()
    arguments: dict[str, Any] | None = None

    def event_data(
        self, subject: PolicySubject, tool_name: str | None = None, tool_call_id: str | None = None
    ) -> dict[str, Any]:
        """The data of the event `policy_decision`."""
        return {
            "subject": subject.value,
            "action": self.action.value,
            "reason": self.reason,
            "rule_id": self.rule_id,
            "matched_rules": list(self.matched_rules),
            "tool_name": tool_name,
            "tool_call_id": tool_call_id,
        }


class PolicyEngine:
    """The operator's rules, which hold for every agent.

    Args:
        rules: their ids are unique.

    Raises:
        ValueError: two rules have one id.
    """

    def __init__(self, rules: Sequence[PolicyRule | Rule] = ()) -> None:
        self.rules = tuple(rules)
        known: set[str] = set()
        self._by_subject: dict[PolicySubject, list[_Candidate]] = {subject: [] for subject in PolicySubject}
        for each in self.rules:
            rule, predicate = (each.rule, each.predicate) if isinstance(each, PolicyRule) else (each, None)
            if rule.rule_id in known:
                raise ValueError(f"two rules have the rule_id {rule.rule_id!r}")
            known.add(rule.rule_id)
            for subject in set(rule.subjects):
                self._by_subject[subject].append((rule, predicate))

    def concerns(self, subject: PolicySubject, agent_rules: Sequence[Rule] = ()) -> bool:
        """Whether any rule, the operator's or the agent's, is about such a deed."""
        return bool(self._by_subject[subject]) or any(subject in rule.subjects for rule in agent_rules)

    def judge(self, deed: Deed, agent_rules: Sequence[Rule] = ()) -> Verdict | None:
        """The verdict on a deed, or None where no rule is about such a deed.

        A deed that meets no rule's condition is allowed. A rule that cannot be judged, because its predicate breaks
        or the arguments are too large for its condition, counts as matched and denies, whatever other rules say.
        """
        if not self.concerns(deed.subject, agent_rules):
            return None
        candidates = [
            *self._by_subject[deed.subject],
            *((rule, None) for rule in agent_rules if deed.subject in rule.subjects),
        ]
        arguments, effort = JsonDocument(deed.arguments), Effort(MAX_EFFORT)
        matches = [_match(rule, predicate, deed, arguments, effort) for rule, predicate in candidates]
        return _verdict(deed, [match for match in matches if match is not None])


_Candidate = tuple[Rule, Callable[[Deed], bool] | None]


@dataclass(frozen=True, slots=True)
class _Match:
    """A rule whose condition holds, or that could not be judged: `failure` is why."""

    rule: Rule
    failure: Exception | None = None

    def rank(self) -> tuple[int, str]:
        return -self.rule.priority, self.rule.rule_id


def _match(
    rule: Rule, predicate: Callable[[Deed], bool] | None, deed: Deed, arguments: JsonDocument, effort: Effort
) -> _Match | None:
    try:
        holds = rule.condition.holds(deed, arguments, effort) and _agrees(predicate, deed)
    except Exception as error:  # noqa: BLE001 - whatever breaks in a rule must not let the deed pass
        return _Match(rule, error)
    return _Match(rule) if holds else None


def _verdict(deed: Deed, matches: Sequence[_Match]) -> Verdict:
    if not matches:
        return Verdict(PolicyAction.ALLOW)
    # Both pick the first of equals, and the operator's rules come first.
    decides = min(matches, key=lambda match: (match.failure is None, match.rank()))
    others = sorted((match for match in matches if match is not decides), key=_Match.rank)
    rule, ids = decides.rule, tuple(match.rule.rule_id for match in (decides, *others))
    if decides.failure is not None:
        return Verdict(PolicyAction.DENY, _told(rule, decides.failure), rule.rule_id, ids)
    given: object = deed.arguments
    arguments = None
    if rule.arguments is not None and isinstance(given, Mapping):
        arguments = {**cast("Mapping[str, Any]", given), **rule.arguments}
    return Verdict(rule.action, rule.reason, rule.rule_id, ids, arguments)


def _agrees(predicate: Callable[[Deed], object] | None, deed: Deed) -> bool:
    if predicate is None:
        return True
    answer = predicate(deed)
    if not isinstance(answer, bool):
        # A forgotten `return` would otherwise switch the rule off without a word.
        raise TypeError(f"the predicate returned {type(answer).__name__} instead of True or False")
    return answer


def _told(rule: Rule, error: Exception) -> str:
    """Why a rule could not be judged, for the model and for people; the operator finds the rest in the log."""
    kind = type(error).__name__
    if isinstance(error, TooMuchEffort):
        _log.warning("policy_rule_not_judged", rule_id=rule.rule_id, error=str(error))
        return f"the rule {rule.rule_id!r} could not be judged: the call or the rules are too large"
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-_MAX_FRAMES))
    _log.error("policy_rule_broke", rule_id=rule.rule_id, error=kind, frames=frames)
    return f"the rule {rule.rule_id!r} could not be judged: {kind}"


def _only_model_calls(info: ValidationInfo) -> bool:
    return set(info.data.get("subjects", ())) == {PolicySubject.MODEL_CALL}
