"""An error's text without what only the machine that it comes from can read."""

from __future__ import annotations

import re

_MAX_CHARS = 8192
_TRACEBACK = re.compile(r"\s*Traceback \(most recent call last\).*", re.DOTALL)
# aiohttp says of each connection what it would have checked: https://docs.aiohttp.org/en/stable/client_reference.html
_SSL = re.compile(r" ssl:(?:<[^<>]*>|default|True|False|None)")
_OBJECT = re.compile(r"<[^<>]*? at 0x[0-9a-fA-F]+>")
# A path and not the end of a URL: from the root, and below one of the folders that a machine has there, or to a file.
_PATH = re.compile(
    r"(?:file://|(?<![\w/.)\]-]))/(?!/)"
    r"(?:(?:home|root|usr|opt|var|etc|tmp|srv|mnt|work|app|run|data|proc|lib|Users)/(?:[^\s/'\"`,;:]+/)*([^\s/'\"`,;:]+)"
    r"|(?:[^\s/'\"`,;:]+/)+([^\s/'\"`,;:]+\.[A-Za-z]\w{0,4})\b)"
)


def plain_words(text: str) -> str:
    """The text without tracebacks, addresses of objects and what leads to a file; the file's name stays.

    What stands after 8192 characters is cut off.
    """
    text = _SSL.sub("", _TRACEBACK.sub("", text[:_MAX_CHARS]))
    return _PATH.sub(lambda path: path[1] or path[2], _OBJECT.sub("…", text))
