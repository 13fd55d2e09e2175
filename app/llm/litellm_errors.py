"""What litellm raises, as a `ModelError`. Told apart by class names, so that litellm need not be imported.

https://docs.litellm.ai/docs/exception_mapping
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, cast

from app.engine.errors import ModelError, ModelErrorCode, class_of_status
from app.llm.json_values import one_line
from app.llm.litellm_lacks import MissingVariables, lack_of, with_variables
from app.llm.plain_words import plain_words
from app.llm.provider_errors import Clock, message_in, retry_after_s, says_context_overflow

_NAMED: Mapping[str, ModelErrorCode] = {
    "ContextWindowExceededError": ModelErrorCode.CONTEXT_OVERFLOW,
    "LiteLLMUnknownProvider": ModelErrorCode.MODEL_NOT_FOUND,
    "APIResponseValidationError": ModelErrorCode.INVALID_RESPONSE,
    "APITimeoutError": ModelErrorCode.TIMEOUT,
    "TimeoutException": ModelErrorCode.TIMEOUT,  # httpx
    "TimeoutError": ModelErrorCode.TIMEOUT,
    "APIConnectionError": ModelErrorCode.CONNECTION,
    "TransportError": ModelErrorCode.CONNECTION,  # httpx
    "ClientError": ModelErrorCode.CONNECTION,  # aiohttp
    "OSError": ModelErrorCode.CONNECTION,
}

# What litellm may make of a call that lacks something; it has no class of its own for it.
_PERHAPS_UNSENT = frozenset(
    {
        ModelErrorCode.AUTHENTICATION,
        ModelErrorCode.CONNECTION,
        ModelErrorCode.SERVER_ERROR,
        ModelErrorCode.INVALID_REQUEST,
        ModelErrorCode.INVALID_RESPONSE,
    }
)

# What litellm puts before the provider's own words: "litellm.RateLimitError: RateLimitError: XException - ", and for
# some "BadRequestError - " behind it; and around them, where it shows a body as Python shows bytes.
_WRAPPING = re.compile(
    r"^(?:litellm\.)?\w+(?:Error|Exception|Timeout)?: .*?(?:Exception|Error) (?:\w+Error )?- |^litellm\.\w+: ",
    re.DOTALL,
)
_BYTES = re.compile(r"^b(['\"])(.*)\1$", re.DOTALL)
# What it adds for those who run it as a proxy.
_ADVICE = re.compile(
    r" To drop these, set .*| The proxy could not resolve this host .*? in litellm_settings\."
    r"|\. Handle with `litellm.*",
    re.DOTALL,
)
# Ollama says in a line of its stream what broke its answer off; litellm only misses the message in that line.
_OLLAMA_BROKE = re.compile(r"Got unexpected response from Ollama: \{'error': (['\"])(.*)\1\}", re.DOTALL)
# Google says in an error's body how long to wait: https://cloud.google.com/apis/design/errors#retry_info
_RETRY_DELAY = re.compile(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"')


def error_of_litellm(error: Exception, *, provider: str, now: Clock, missing: MissingVariables) -> ModelError:
    """Class whatever came out of litellm.

    Args:
        provider: the prefix of the model that was called.
        now: the clock that a Retry-After date is held against; timezone-aware.
        missing: see `MissingVariables`; asked only about a call that lacks something.
    """
    while isinstance(inner := getattr(error, "original_exception", None), Exception):
        error = inner  # a break in mid-stream, which only wraps what broke
    status = getattr(error, "status_code", None)
    whole = str(error)
    said = _unwrapped(whole)
    code = _class_of(error, status, said)
    said = plain_words(message_in(said.encode("utf-8", "replace")))
    if code in _PERHAPS_UNSENT:
        code, said, status = _as_lacking(error, said, missing) or (code, said, status)
    broke = _OLLAMA_BROKE.search(whole)
    if broke is not None:
        code, said, status = ModelErrorCode.SERVER_ERROR, plain_words(broke[2]), None
    key = os.environ.get(f"{provider.upper()}_API_KEY")
    if key:
        said = said.replace(key, "***")
    return ModelError(
        code,
        f"{provider}: {one_line(said) or type(error).__name__}",
        # litellm gives a connection that broke the status 500, which nobody sent.
        status=status if isinstance(status, int) and code is not ModelErrorCode.CONNECTION else None,
        retry_after_s=retry_after_s(_retry_after(error) or _delay_in(whole), now),
    )


def _as_lacking(
    error: Exception, said: str, missing: MissingVariables
) -> tuple[ModelErrorCode, str, int | None] | None:
    """The error's class, text and status where the call was not sent, or sent without a key; None otherwise.

    Of a call that was never sent litellm makes up a status.
    """
    lack = lack_of(error, said, missing)
    if lack is not None:
        return (*lack, None)
    status = getattr(error, "status_code", None)
    if status not in (401, 403):
        return None
    keys = [name for name in missing() if name.endswith("_API_KEY")]
    return (ModelErrorCode.AUTHENTICATION, with_variables(said, said, lambda: keys), status) if keys else None


def _unwrapped(said: str) -> str:
    said = _ADVICE.sub("", _WRAPPING.sub("", said))
    shown = _BYTES.match(said)
    return said if shown is None else shown[2].replace("\\n", "\n").replace("\\'", "'")


def _delay_in(said: str) -> str | None:
    delay = _RETRY_DELAY.search(said)
    return None if delay is None else delay[1]


def _class_of(error: Exception, status: object, said: str) -> ModelErrorCode:
    code = _class_by_name(error)
    if code is None:
        code = class_of_status(status) if isinstance(status, int) else ModelErrorCode.INVALID_RESPONSE
    if code is ModelErrorCode.INVALID_REQUEST and says_context_overflow(said):
        return ModelErrorCode.CONTEXT_OVERFLOW
    if code is ModelErrorCode.SERVER_ERROR:
        return _class_by_cause(error) or code
    return code


def _class_by_name(error: BaseException) -> ModelErrorCode | None:
    return next((_NAMED[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _NAMED), None)


def _class_by_cause(error: BaseException) -> ModelErrorCode | None:
    """litellm calls a server out of reach an internal error of that server; what it caught tells better."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        code = _class_by_name(cause)
        if code in (ModelErrorCode.CONNECTION, ModelErrorCode.TIMEOUT):
            return code
        cause = cause.__cause__ or cause.__context__
    return None


def _retry_after(error: Exception) -> str | None:
    for headers in (
        getattr(getattr(error, "response", None), "headers", None),
        getattr(error, "litellm_response_headers", None),
    ):
        if isinstance(headers, Mapping):
            value = cast("Mapping[str, Any]", headers).get("retry-after")
            if value is not None:
                return str(value)
    return None
