"""What a text looks like that wants to be taken for more than data, and how its shape is broken up.

The patterns are for lower-case text without ornaments (see `app.tools.sanitize`), plain or as JSON: they know both
spellings of a line break, and that a JSON string begins at a quote. None repeats without bound, so time is linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

DOT = "·"  # what breaks a match; no pattern takes it for a gap between words

_LINE = r"(?:^|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029\"']|\\[nrtf])"
_GAP = rf"(?:\\[nrtf]|[^a-z0-9{DOT}]){{0,12}}"
_START = r"(?:(?<![a-z0-9])|(?<=\\[nrtbf]))"

_ROLES = "system|assistant|human|user|developer"
_TAGS = (
    r"tool_calls?|tool_use|tool_results?|tool_response|tool_outputs?|tool_code|tools|invoke|parameter|"
    r"function_calls?|function_results?|function_response|functions|system|assistant|human|instructions?|"
    r"system_prompt|system-reminder|start_of_turn|end_of_turn|untrusted_output"
)
_DROP = (
    r"ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|bypass(?:ing)?|overlook|neglect|abandon|"
    rf"(?:do{_GAP}not|don.?t|never|stop){_GAP}(?:follow|obey)(?:ing)?"
)
_EARLIER = (
    "all|any|every|your|these|those|previous|previously|prior|above|earlier|preceding|former|foregoing|existing|"
    "original|initial|system|current|past"
)
_FILLER = f"{_EARLIER}|of|the|my|other|and|or|given|stated|developer|to|from|safety|hidden|own|that|about"
_ORDERS = (
    "instructions?|prompts?|rules?|directions?|directives?|guidelines?|guardrails?|commands?|orders?|messages?|"
    "constraints?|restrictions?|policies|policy|training|programming|conversation"
)
_TOLD = "above|before|previously|earlier|prior|told|said|until|far"
_ADJECTIVES = "full|hidden|initial|original|secret|own|entire|exact"


@dataclass(frozen=True, slots=True)
class Family:
    """Patterns of one kind.

    Args:
        words: at least one of them is in every text that the pattern matches.
        broken: a match, in any case of letters, with the dot in its place.
    """

    words: tuple[str, ...]
    pattern: re.Pattern[str]
    broken: Callable[[str], str]


def _phrase(*alternatives: str) -> re.Pattern[str]:
    """Words in order, with anything but words in between: `~` stands for that."""
    return re.compile(f"{_START}(?:{'|'.join(alternatives).replace('~', _GAP)})(?![a-z0-9])")


def _after_first(text: str) -> str:
    return f"{text[0]}{DOT}{text[1:]}"


def _before_last(text: str) -> str:
    return f"{text[:-1]}{DOT}{text[-1]}"


_GAPS = re.compile(r"(?:\\[nrtf]|[\W_])+")


def _between_words(text: str) -> str:
    joined = _GAPS.sub(DOT, text)
    return joined if DOT in joined else _after_first(text)


FAMILIES = (
    Family(
        ("<",),
        re.compile(
            rf"<[ \t/]{{0,4}}(?:[a-z]{{1,16}}:)?(?:{_TAGS})(?![a-z0-9_-])"
            r"|<\|[^|<>\n]{1,64}\|>|<</?sys>>|</?(?:s|bos|eos)>"
        ),
        _after_first,
    ),
    Family(("inst",), re.compile(r"\[[ \t]{0,4}/?[ \t]{0,4}inst[ \t]{0,4}\]"), _after_first),
    Family(
        tuple(_ROLES.split("|")),
        re.compile(
            rf"{_LINE}[ \t>*#_`-]{{0,16}}(?:{_ROLES})(?:[ \t_-](?:message|prompt|instructions?|role))?[ \t*_`]{{0,4}}:"
        ),
        _before_last,
    ),
    Family(
        ("###",),
        re.compile(rf"###(?=[# \t]{{0,8}}(?:{_ROLES}|instruction|response|input))"),
        lambda text: text + DOT,
    ),
    Family(("```", "~~~"), re.compile(r"(?:```|~~~)(?=[ \t]{0,4}(?:tool_|function_|system|untrusted))"), _after_first),
    Family(
        ("ignor", "disregard", "forget", "overrid", "bypass", "overlook", "neglect", "abandon", "follow", "obey"),
        _phrase(
            rf"(?:{_DROP})~(?:(?:{_FILLER})~){{0,6}}?(?:{_EARLIER})~(?:(?:{_FILLER})~){{0,4}}?(?:{_ORDERS})",
            rf"(?:{_DROP})~(?:everything|anything|all|what)(?:~[a-z]{{1,12}}){{0,6}}?~(?:{_TOLD})",
        ),
        _between_words,
    ),
    Family(
        ("instructions", "prompt", "task", "goal", "role"),
        _phrase(
            r"(?:here~are~|these~are~|follow~|obey~)?(?:your|my|the)~(?:new|real|actual|true)~(?:system~)?"
            r"(?:instructions|prompt|task|goal|role)",
            r"new~(?:system~)?(?:instructions|prompt)",
            r"(?:reveal|print|repeat|output|show|leak|tell)~(?:me~|us~|out~)?(?:your|the)~"
            rf"(?:(?:{_ADJECTIVES})~){{0,2}}(?:system~)?(?:instructions|prompt)",
        ),
        _between_words,
    ),
    Family(
        ("now", "pretend", "jailbr", "act"),
        _phrase(
            r"you~are~now~(?:an?|in|the|no|free|unrestricted|dan|going~to)",
            r"from~now~on~you",
            r"pretend~(?:to~be|that~you|you)",
            r"act~as~(?:if|though)~you",
            r"do~anything~now",
            r"jailbr(?:eak|oken)~mode",
        ),
        _between_words,
    ),
)
