"""The operator's policy modules: what they bring, and how a wrong one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from app.engine.policy import Deed, PolicyAction, PolicyRule, PolicySubject
from app.services.policy_modules import PolicyModuleError, load_policy_modules
from app.settings import Settings, SettingsError

WriteModule = Callable[[str, str], None]

SHARED = """
    from app import PolicyRule

    def big(deed):
        return deed.arguments["amount"] > 100

    refunds = PolicyRule(rule_id="refunds", action="deny", subjects=["tool_call"], predicate=big)
"""


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        tmp_path.joinpath(f"{name}.py").write_text(dedent(source))

    return write


def ids(names: list[str]) -> list[str]:
    return [
        rule.rule.rule_id if isinstance(rule, PolicyRule) else rule.rule_id for rule in load_policy_modules(names).rules
    ]


def test_no_modules_have_no_rules() -> None:
    assert load_policy_modules(()).rules == ()


def test_every_rule_and_engine_at_the_top_level_is_gathered_once(write_module: WriteModule) -> None:
    write_module("gathered_shared", SHARED)
    write_module(
        "gathered_more",
        """
        from app import PolicyEngine, PolicyRule
        from gathered_shared import refunds

        mails = PolicyRule(rule_id="mails", action="request_approval", subjects=["tool_call"], tool_name="send_*")
        engine = PolicyEngine([
            refunds, mails, PolicyRule(rule_id="models", action="allow", subjects=["model_call"]),
        ])
        """,
    )
    assert ids(["gathered_shared", "gathered_more"]) == ["refunds", "mails", "models"]
    engine = load_policy_modules(["gathered_shared", "gathered_more"])
    verdict = engine.judge(Deed(PolicySubject.TOOL_CALL, "clerk", {}, "refund", {"amount": 101}))
    assert verdict is not None
    assert verdict.action is PolicyAction.DENY


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("policy_empty", "rules = []", "has no PolicyRule or PolicyEngine at its top level"),
        ("policy_broken", "1 / 0", "cannot be imported: ZeroDivisionError"),
        (
            "policy_wrong",
            "from app import PolicyRule\nPolicyRule(rule_id='r', action='refuse', subjects=['tool_call'])",
            "'allow', 'deny', 'request_approval' or 'request_user_input'",
        ),
    ],
)
def test_a_module_that_cannot_be_used_is_named(write_module: WriteModule, name: str, source: str, told: str) -> None:
    write_module(name, source)
    with pytest.raises(PolicyModuleError) as refused:
        load_policy_modules([name])
    assert str(refused.value).startswith(f"POLICY_MODULES names {name!r}, which ")
    assert told in str(refused.value)


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(PolicyModuleError, match=r"POLICY_MODULES names 'no\.such\.module', which cannot be imported"):
        load_policy_modules(["no.such.module"])


def test_two_modules_with_one_rule_id_are_both_named(write_module: WriteModule) -> None:
    write_module("policy_one", SHARED)
    write_module("policy_two", SHARED)
    with pytest.raises(PolicyModuleError, match="'policy_two', which has a rule 'refunds', as 'policy_one' has"):
        load_policy_modules(["policy_one", "policy_two"])


def test_the_setting_lists_import_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLICY_MODULES", "policies.money, policies.mail,")
    assert Settings.load().policy_modules == ("policies.money", "policies.mail")
    monkeypatch.setenv("POLICY_MODULES", "a-b")
    with pytest.raises(SettingsError, match=r"POLICY_MODULES: .* import path"):
        Settings.load()
