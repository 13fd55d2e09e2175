from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from app.engine.effects import ToolEffect
from app.engine.tools import ToolInvocation, ToolPort
from app.tools import ToolRegistrationError, tool
from tests.tool_calls import EndingRegistry

Invocation = Callable[..., ToolInvocation]
WriteModule = Callable[[str, str], None]


@tool(effect="read_only")
async def echo(word: str) -> str:
    """Say it again."""
    return word


@tool
async def other() -> str:
    return "other"


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))

    return write


def test_implements_the_engines_port() -> None:
    port: ToolPort = EndingRegistry([echo])
    spec = port.spec("echo")
    assert spec is not None
    assert (spec.name, spec.description, spec.effect) == ("echo", "Say it again.", ToolEffect.READ_ONLY)
    assert port.spec("nothing") is None


def test_lists_tools_in_the_order_of_their_arrival() -> None:
    registry = EndingRegistry([other])
    registry.register(echo)
    assert [spec.name for spec in registry.specs()] == ["other", "echo"]


def test_a_name_that_is_taken_is_refused_naming_both_sides() -> None:
    @tool(name="echo")
    def imitation() -> None: ...

    registry = EndingRegistry([echo])
    registry.register(echo)
    with pytest.raises(ToolRegistrationError) as refused:
        registry.register(imitation)
    assert "two tools are named 'echo'" in str(refused.value)
    assert f"{__name__}.echo" in str(refused.value)
    assert f"{__name__}.test_a_name_that_is_taken" in str(refused.value)


async def test_a_tool_that_the_agent_did_not_name_does_not_exist_for_it(invocation: Invocation) -> None:
    registry = EndingRegistry([echo, other])
    hidden = await registry.invoke(invocation("other", allowed_tools=frozenset({"echo", "abc"})))
    missing = await registry.invoke(invocation("nothing", allowed_tools=frozenset({"echo", "abc"})))
    assert hidden.error == "there is no tool 'other'; the tools are: abc, echo"
    assert missing.error == "there is no tool 'nothing'; the tools are: abc, echo"
    assert hidden.content == f"Error: {hidden.error}"
    none = await registry.invoke(invocation("echo", allowed_tools=frozenset[str]()))
    assert none.error == "there is no tool 'echo'; the tools are: none"


async def test_a_tool_that_this_replica_lacks_is_an_error_of_the_call(invocation: Invocation) -> None:
    result = await EndingRegistry().invoke(invocation("echo"))
    assert result.error == "the tool 'echo' is not available on this server"


async def test_a_name_of_any_size_is_answered_within_the_bounds(invocation: Invocation) -> None:
    result = await EndingRegistry().invoke(invocation("\x00\ud800" * 100_000, allowed_tools=frozenset[str]()))
    assert result.error is not None
    assert len(result.error) <= 2_000
    result.content.encode()


async def test_loads_the_tools_of_a_module(write_module: WriteModule, invocation: Invocation) -> None:
    write_module(
        "loaded_tools.first",
        """
        from __future__ import annotations
        from app.tools import ToolContext, tool
        from app.tools.builtin import calculate

        @tool
        def shout(word: str, ctx: ToolContext) -> str:
            return word.upper() + ctx.run_id

        def plain() -> None: ...
        """,
    )
    registry = EndingRegistry()
    registry.load_modules(["loaded_tools.first", "app.tools.builtin"])
    assert [spec.name for spec in registry.specs()] == ["calculate", "shout", "current_time"]
    assert (await registry.invoke(invocation("shout", {"word": "a"}))).content == "Arun-1"
    await registry.aclose()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def broken(:", "SyntaxError: "),
        ("from app.tools import tool\n@tool\ndef f(x): ...", "parameter 'x' has no type hint"),
        ("x = 1", "has no @tool function at its top level"),
    ],
)
def test_a_module_that_gives_no_tools_is_named_with_the_setting(
    write_module: WriteModule, tmp_path: Path, source: str, problem: str
) -> None:
    name = tmp_path.name  # unlike any other, for imported modules stay
    write_module(name, source)
    with pytest.raises(ToolRegistrationError) as refused:
        EndingRegistry().load_modules([name])
    assert str(refused.value).startswith(f"TOOL_MODULES names {name!r}, which ")
    assert problem in str(refused.value)


def test_a_module_that_does_not_exist_is_named_with_the_setting() -> None:
    with pytest.raises(ToolRegistrationError, match=r"TOOL_MODULES names 'no\.such\.module', which cannot be imported"):
        EndingRegistry().load_modules(["no.such.module"])


async def test_the_records_bound_is_the_registrys_and_the_messages_is_the_calls(
    invocation: Invocation,
) -> None:
    registry = EndingRegistry([echo], record_max_bytes=500)
    result = await registry.invoke(invocation("echo", {"word": "a" * 2_000}, output_max_chars=1_000))
    assert result.output is not None
    assert 400 < len(result.output) <= 500
    assert 900 < len(result.content) <= 1_000
