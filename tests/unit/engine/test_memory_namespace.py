from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.engine.agent import AgentDefinition
from app.engine.memories import MAX_NAMESPACE_CHARS
from app.engine.memory_namespace import NoNamespace, memory_namespace


def agent(template: str | None = None, **settings: Any) -> AgentDefinition:
    return AgentDefinition(name="helper", model="demo/echo", memory_namespace=template, **settings)


def test_by_default_each_user_of_each_agent_has_a_namespace() -> None:
    assert memory_namespace(agent(), {}, "42") == "agents/helper/users/42"
    assert memory_namespace(agent(), {"user_id": "43"}, "ada@example.com") == "agents/helper/users/ada@example.com"


@pytest.mark.parametrize("user_id", [None, ""])
def test_without_a_user_there_is_no_default_rather_than_one_that_all_share(user_id: str | None) -> None:
    with pytest.raises(NoNamespace, match="no user_id"):
        memory_namespace(agent(), {"user_id": "42"}, user_id)


@given(one=st.text(min_size=1, max_size=8), other=st.text(min_size=1, max_size=8))
def test_no_user_id_leads_to_the_place_of_another_one(one: str, other: str) -> None:
    try:
        places = [memory_namespace(agent(), {}, user_id) for user_id in (one, other)]
    except UnicodeEncodeError:
        return  # half of a surrogate pair: no request can bring one
    assert (places[0] == places[1]) is (one == other)
    assert all(place.count("/") == 3 for place in places)


def test_placeholders_are_filled_from_the_run_over_the_agents_defaults() -> None:
    given = agent(
        "teams/{{ team.name }}/{{ user_id }}/{{plan}}", context_defaults={"plan": "free", "team": {"name": 1}}
    )
    assert memory_namespace(given, {"team": {"name": "a/b %"}}, "42") == "teams/a%2Fb%20%25/42/free"


def test_the_runs_user_goes_before_one_in_the_context() -> None:
    assert memory_namespace(agent("{{ user_id }}"), {"user_id": "43"}, "42") == "42"
    assert memory_namespace(agent("{{ user_id }}"), {"user_id": "43"}, None) == "43"


def test_a_namespace_without_placeholders_is_shared_on_purpose() -> None:
    assert memory_namespace(agent("handbook"), {}, None) == "handbook"


@pytest.mark.parametrize("value", [None, "", True, 1.5, ["a"], {"b": 1}])
def test_a_placeholder_without_a_name_to_fill_it_is_refused(value: object) -> None:
    with pytest.raises(NoNamespace, match=r"\{\{ team \}\}"):
        memory_namespace(agent("teams/{{ team }}"), {"team": value}, "42")
    with pytest.raises(NoNamespace, match=r"\{\{ team.name \}\}"):
        memory_namespace(agent("teams/{{ team.name }}"), {}, "42")


def test_a_namespace_that_becomes_too_long_is_refused() -> None:
    with pytest.raises(NoNamespace, match=f"more than {MAX_NAMESPACE_CHARS}"):
        memory_namespace(agent(), {}, "x" * 250)


@pytest.mark.parametrize("template", ["", "/", "a/", "/a", "a//b", "a b", "a/{{ x }} /b", "{{ not a name }}", "a\nb"])
def test_a_template_that_is_no_path_is_refused_with_the_agent(template: str) -> None:
    with pytest.raises(ValidationError, match="memory_namespace"):
        agent(template)
