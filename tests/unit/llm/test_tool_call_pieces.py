"""The ways in which servers stream tool calls, OpenAI's own first."""

from __future__ import annotations

from typing import Any

from app.engine.messages import ToolCall
from app.llm.tool_call_pieces import ToolCallPieces


def _piece(
    index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    piece: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if index is not None:
        piece["index"] = index
    if call_id is not None:
        piece["id"] = call_id
    return piece


def _calls(*pieces: dict[str, Any], complete: bool = True) -> tuple[ToolCall, ...]:
    collected = ToolCallPieces()
    for piece in pieces:
        collected.add(piece)
    return collected.calls(complete=complete)


def test_arguments_are_joined_by_index() -> None:
    assert _calls(
        _piece(0, "a", "add", ""),
        _piece(0, arguments='{"x"'),
        _piece(1, "b", "sub", '{"y":'),
        _piece(0, arguments=":1}"),
        _piece(1, arguments="2}"),
    ) == (ToolCall("a", "add", '{"x":1}'), ToolCall("b", "sub", '{"y":2}'))


def test_an_id_repeated_with_each_piece_is_one_call() -> None:
    pieces = _piece(0, "a", "add", '{"x"'), _piece(0, "a", "add", ":1}")
    assert _calls(*pieces) == (ToolCall("a", "add", '{"x":1}'),)


def test_a_new_id_with_each_piece_of_one_index_is_one_call() -> None:
    pieces = _piece(0, "a", "add", '{"x"'), _piece(0, "b", "", ":1}")
    assert _calls(*pieces) == (ToolCall("a", "add", '{"x":1}'),)


def test_pieces_without_index_continue_the_call_before() -> None:
    assert _calls(
        _piece(None, "a", "add", '{"x"'),
        _piece(None, arguments=":1}"),
        _piece(None, "b", "sub", "{"),
        _piece(None, arguments="}"),
    ) == (ToolCall("a", "add", '{"x":1}'), ToolCall("b", "sub", "{}"))


def test_pieces_without_index_are_told_apart_by_id() -> None:
    assert _calls(_piece(None, "a", "add", "["), _piece(None, "b", "sub", "{"), _piece(None, "a", "", "]")) == (
        ToolCall("a", "add", "[]"),
        ToolCall("b", "sub", "{"),
    )


def test_whole_calls_that_all_say_index_0_are_several() -> None:
    pieces = _piece(0, "a", "add", '{"x":1}'), _piece(0, "b", "add", '{"x":2}')
    assert _calls(*pieces) == (ToolCall("a", "add", '{"x":1}'), ToolCall("b", "add", '{"x":2}'))


def test_whole_calls_without_index_and_id_get_ids_of_their_own() -> None:
    first, second = _calls(_piece(None, None, "add", {"x": 1}), _piece(None, None, "add", {"x": 2}))
    assert (first.arguments, second.arguments) == ('{"x":1}', '{"x":2}')
    assert first.id.startswith("call_")
    assert first.id != second.id


def test_an_id_that_comes_late_is_taken() -> None:
    assert _calls(_piece(0, None, "add", "{"), _piece(0, "a", None, "}")) == (ToolCall("a", "add", "{}"),)


def test_absent_arguments_mean_none_in_a_complete_answer_only() -> None:
    assert _calls(_piece(0, "a", "now", ""))[0].arguments == "{}"
    assert _calls(_piece(0, "a", "now", ""), complete=False)[0].arguments == ""


def test_malformed_arguments_stay_as_the_model_wrote_them() -> None:
    assert _calls(_piece(0, "a", "add", '{"x": 1,,}'))[0].arguments == '{"x": 1,,}'


def test_the_name_comes_with_the_first_piece_only() -> None:
    pieces = ToolCallPieces()
    names = [pieces.add(_piece(0, "a", name, "{")).name for name in ("add", "add", None)]
    assert names == ["add", "", ""]


def test_a_delta_names_the_calls_place_in_the_response_not_the_servers_index() -> None:
    pieces = ToolCallPieces()
    deltas = [pieces.add(_piece(5, "a", "add", "{}")), pieces.add(_piece(9, "b", "sub", "{}"))]
    assert [(delta.index, delta.tool_call_id) for delta in deltas] == [(0, "a"), (1, "b")]


def test_what_no_row_can_hold_is_replaced_in_names_and_ids() -> None:
    collected = ToolCallPieces()
    delta = collected.add(_piece(0, "a\0", "add\0\ud800", "{}"))
    assert (delta.tool_call_id, delta.name) == ("a\ufffd", "add\ufffd\ufffd")
    assert collected.calls(complete=True) == (ToolCall("a\ufffd", "add\ufffd\ufffd", "{}"),)


def test_an_id_with_a_nul_is_still_known_by_its_pieces() -> None:
    pieces = _piece(None, "a\0", "add", '{"x"'), _piece(None, "a\0", "", ":1}")
    assert _calls(*pieces) == (ToolCall("a\ufffd", "add", '{"x":1}'),)
