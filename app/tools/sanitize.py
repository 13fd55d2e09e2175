"""A tool's output as a model may read it: what imitates a conversation, or tells a model to drop its orders, broken up.

It happens in sight, with a dot, and the text stays readable: `system·:`, `<·tool_call>`, `ignore·all·instructions`.
Keys are treated as values are, at any depth, since JSON is taken as the text that it is. Matching sees the text in
lower case, in its compatibility form (NFKD, https://unicode.org/reports/tr15/), without marks and characters that are
not seen, and with Latin letters for those of other scripts that look the same; so a match may be in any disguise.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from app.tools.injection_patterns import FAMILIES, Family

_MAX_ROUNDS = 4

# Marks that change how a letter looks, and characters that are not seen at all.
_UNSEEN = re.compile(
    "[\u00ad\u0300-\u036f\u0483-\u0489\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u1ab0-\u1aff\u1dc0-\u1dff"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u3164\ufe00-\ufe0f\ufe20-\ufe2f\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0001\U000e0100-\U000e01ef]"
)
# Text that people do not see (tag characters), or see in another order than it stands (bidirectional controls).
_DECEITFUL = re.compile("[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")

_LOOKALIKES = str.maketrans(
    dict(zip("авеёзіїјкмнорсстухѕһԁԛԝ", "abeeziijkmhopcctyxshdqw", strict=True))
    | dict(zip("αβγεζηικμνορτυχω", "abyeznikuvoptuxw", strict=True))
    | dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢıƖǀ", "abcdefghijklmnoprstuvwyziil", strict=True))
    | dict(zip("∣‹›⟨⟩〈〉❮❯˂˃։∶", "|<><><><><>::", strict=True))
    | {chr(0xE0000 + code): chr(code).lower() for code in range(0x20, 0x7F)}
)


def neutralised(text: str) -> str:
    """The text with nothing left in it that the patterns match; time is linear in its length. Never raises."""
    text = _broken_up(text)
    if text.isascii():
        return text
    seen = _DECEITFUL.sub("\ufffd", text)
    return text if seen == text else _broken_up(seen)


def _broken_up(text: str) -> str:
    for _ in range(_MAX_ROUNDS):  # where two matches overlapped, the second one may be left for the next round
        again = _once(text)
        if again == text:
            break
        text = again
    return text


def _once(text: str) -> str:
    seen = _seen(text)
    matches = [match for family in FAMILIES for match in _matches(family, seen)]
    if not matches:
        return text
    matches.sort(key=lambda match: match.start)
    places = None if text.isascii() else _places(text)
    pieces: list[str] = []
    done = 0  # in `text`
    for match in matches:
        start, end = (match.start, match.end) if places is None else (places[match.start], places[match.end])
        if start < done:
            continue
        original = text[start:end]
        pieces += (text[done:start], match.family.broken(original if original.isascii() else match.text))
        done = end
    return "".join((*pieces, text[done:]))


@dataclass(frozen=True, slots=True)
class _Match:
    """A match, and its place in the text as matching sees it."""

    family: Family
    text: str
    start: int
    end: int


def _matches(family: Family, seen: str) -> list[_Match]:
    for word in family.words:  # a loop and no `any`: most texts are small, and end here
        if word in seen:
            return [_Match(family, found[0], *found.span()) for found in family.pattern.finditer(seen)]
    return []


def _seen(text: str) -> str:
    """The text as matching sees it."""
    if text.isascii():
        return text.lower()
    return _UNSEEN.sub("", unicodedata.normalize("NFKD", text).lower()).translate(_LOOKALIKES)


@lru_cache(maxsize=4096)
def _seen_length(character: str) -> int:
    return len(_seen(character))


def _places(text: str) -> list[int]:
    """For each character that matching sees, and for their end, the index in the text that it comes from."""
    places: list[int] = []
    for index, character in enumerate(text):
        length = 1 if character < "\x80" else _seen_length(character)
        if length == 1:
            places.append(index)
        elif length:
            places += [index] * length
    places.append(len(text))
    return places
