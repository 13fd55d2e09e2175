"""What a call through litellm lacked, told from what only was tried on the way."""

from __future__ import annotations

from app.engine.errors import ModelErrorCode
from app.llm.litellm_lacks import lack_of


def _raised_after_an_import(said: str) -> Exception:
    try:
        try:
            raise ModuleNotFoundError("No module named 'orjson_fast'", name="orjson_fast")
        except ModuleNotFoundError:
            raise ConnectionError(said)  # noqa: B904 - as it comes: the import is no cause
    except ConnectionError as error:
        return error


def test_an_import_that_was_only_tried_is_no_lack() -> None:
    said = "connection reset"
    assert lack_of(_raised_after_an_import(said), said, lambda: ()) is None


def test_an_import_that_the_error_tells_of_is_one() -> None:
    said = "No module named 'orjson_fast'"
    lack = lack_of(_raised_after_an_import(said), said, lambda: ())
    assert lack is not None
    assert lack[0] is ModelErrorCode.MODEL_NOT_FOUND
    assert lack[1].endswith("pip install orjson-fast")


def test_variables_of_the_text_stand_in_for_a_list_of_them() -> None:
    said = "Missing credentials. Set the `A_API_KEY` or `A_ADMIN_KEY` variable."
    assert lack_of(ValueError(said), said, lambda: ()) == (
        ModelErrorCode.AUTHENTICATION,
        "no credentials; not in the environment: A_API_KEY",
    )
    said = "Missing credentials."
    assert lack_of(ValueError(said), said, lambda: ()) == (ModelErrorCode.AUTHENTICATION, said)
