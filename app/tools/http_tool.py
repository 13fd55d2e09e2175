"""A tool whose call is one HTTP request."""

from __future__ import annotations

import re
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import orjson

from app.engine.effects import ToolEffect
from app.engine.tool_definitions import HttpToolDefinition
from app.engine.tools import ToolInvocation, ToolSource, ToolSpec
from app.tools.egress import Answer, Bounds, Egress
from app.tools.errors import CallError
from app.tools.hosts import HostPatterns
from app.tools.http_request import RequestTemplate
from app.tools.schema_arguments import SchemaArguments
from app.tools.secrets import Secrets

_MAX_EXCERPT_CHARS = 1_000
_JSON_TYPE = re.compile(r"application/json|[a-z0-9.+-]+/[a-z0-9.+-]+\+json")
# Python's decoders for anything else are for other purposes, and some are quadratic.
_CHARSET = re.compile(
    r"utf-?8|utf-?16(le|be)?|utf-?32|(us-)?ascii|iso-8859-\d+|latin-?1|(windows-|cp)125\d|shift_jis|gbk|gb2312|gb18030"
    r"|big5|euc-(jp|kr)|koi8-[ru]"
)


class HttpTool:
    """Implements `CallableTool`. A call is sent once, whatever becomes of it.

    Args:
        redirect_hosts: where its requests may be redirected to; None for any host.

    Raises:
        ToolDefinitionError: no call of it could be sent; says why.
    """

    def __init__(
        self,
        definition: HttpToolDefinition,
        egress: Egress,
        secrets: Secrets,
        *,
        redirect_hosts: HostPatterns | None = None,
    ) -> None:
        self._arguments = SchemaArguments(definition.parameters)
        self._template = RequestTemplate(definition)
        self._egress = egress
        self._secrets = secrets
        self._redirect_hosts = redirect_hosts
        by_default = ToolEffect.READ_ONLY if definition.method == "GET" else ToolEffect.UNSAFE
        self.spec = ToolSpec(
            name=definition.name,
            description=definition.description,
            parameters=definition.parameters,
            effect=definition.effect or by_default,
            source=ToolSource.HTTP,
        )
        self.timeout_s = definition.timeout_s

    @property
    def template(self) -> RequestTemplate:
        return self._template

    def parsed(self, arguments: str) -> dict[str, Any]:
        """See `CallableTool.parsed`."""
        return self._arguments.parse(arguments)

    async def call(self, arguments: dict[str, Any], invocation: ToolInvocation) -> object:
        """The answer's body: what JSON says, or text. No secret is in it.

        Raises:
            CallError: nothing could be sent, no answer came, or one whose status is none of 200 to 299.
        """
        repeatable = self.spec.effect is not ToolEffect.READ_ONLY
        key = invocation.idempotency_key if repeatable else None
        request = self._template.filled(arguments, self._secrets, key)
        bounds = Bounds(total_s=self.timeout_s, read_s=self.timeout_s)
        answer = await self._egress.send(replace(request, bounds=bounds, hosts=self._redirect_hosts))
        text = self._secrets.redacted(_text(answer))
        if not answer.is_success:
            raise CallError(f"{self._template.target.host} answered {_status(answer.status)}", _excerpt(text))
        if not _JSON_TYPE.fullmatch(answer.media_type):
            return text
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text


def _text(answer: Answer) -> str:
    """The body as text; of one that is none, its type and size."""
    charset = (answer.charset or "utf-8").lower()
    if not _CHARSET.fullmatch(charset):
        charset = "utf-8"
    is_text = answer.media_type.startswith("text/") or bool(_JSON_TYPE.fullmatch(answer.media_type))
    try:
        return answer.body.decode(charset, "replace" if is_text or not answer.is_whole else "strict")
    except (UnicodeDecodeError, LookupError):
        return f"[{answer.media_type or 'an answer without a type'}, {len(answer.body)} bytes: not text]"


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _excerpt(text: str) -> tuple[str, ...]:
    line = " ".join(text[: 2 * _MAX_EXCERPT_CHARS].split())
    if len(line) > _MAX_EXCERPT_CHARS:
        line = line[: _MAX_EXCERPT_CHARS - 1] + "…"
    return (line,) if line else ()
