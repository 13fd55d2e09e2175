"""What of an error's text people get to read."""

from __future__ import annotations

import pytest

from app.llm.plain_words import plain_words


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('No key.\nTraceback (most recent call last):\n  File "/x/y.py", line 1', "No key."),
        (
            "Cannot connect to host h:443 ssl:<ssl.SSLContext object at 0x7f4e> [why]",
            "Cannot connect to host h:443 [why]",
        ),
        ("Cannot connect to host h:80 ssl:default [why]", "Cannot connect to host h:80 [why]"),
        ("got <httpx.Response object at 0x7f4e> and <function f at 0x1>", "got … and …"),
        ("cannot read '/root/.config/litellm/key.json'", "cannot read 'key.json'"),
        ("cannot read file:///home/me/key", "cannot read key"),
        ("File /secrets/google/key.json was not found", "File key.json was not found"),
        ("no route /v1/chat/completions", "no route /v1/chat/completions"),
        ("see https://docs.host/usr/lib/page.html", "see https://docs.host/usr/lib/page.html"),
        ("use and/or, 1/2, models/gemini-1.5-pro", "use and/or, 1/2, models/gemini-1.5-pro"),
        ("a < b and b > c", "a < b and b > c"),
    ],
)
def test_nothing_of_the_machine_is_told_and_all_else_is(text: str, plain: str) -> None:
    assert plain_words(text) == plain


def test_a_long_text_is_cut() -> None:
    assert len(plain_words("a" * 100_000)) == 8192
