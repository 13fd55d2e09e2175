"""What keeps litellm from calling a provider at all: credentials or a Python package that are not there.

litellm has no class of errors for either. It calls them a broken connection, an error of the provider's or a wrong
request, as it comes, so they are told by their words and by what was raised first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from app.engine.errors import ModelErrorCode

# Names of the variables that a model's provider reads and that are not set.
MissingVariables = Callable[[], Sequence[str]]

_NO_CREDENTIALS = re.compile(
    r"missing (?:[\w-]+ ){0,3}?(?:api key|jwt key|credentials|tenant id|token)\b"
    r"|(?:api[_ ]key|credentials|token) (?:is |are |was |were )?(?:not (?:set|provided|found)|missing|required)\b"
    r"|\bno (?:[\w-]+ ){0,2}?(?:api key|credentials)\b (?:is |are |was |were )?(?:set|provided|found|given)\b"
    r"|unable to locate credentials",
    re.IGNORECASE,
)
_NO_ADDRESS = re.compile(r"\bapi_base is required\b", re.IGNORECASE)
# OpenAI's package names its own administrators' key for everybody who speaks as OpenAI does.
_VARIABLE = re.compile(r"\b(?!\w+_ADMIN_KEY\b)[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_PIP_INSTALL = re.compile(r"\bpip install(?:ing)? [`'\"]?([A-Za-z][\w.\[\]-]*)")
# Packages that are called otherwise than the module that they bring.
_PACKAGES: Mapping[str, str] = {
    "google.auth": "google-auth",
    "vertexai": "google-cloud-aiplatform",
    "azure.identity": "azure-identity",
    "databricks": "databricks-sdk",
}


def lack_of(error: BaseException, said: str, missing: MissingVariables) -> tuple[ModelErrorCode, str] | None:
    """What a call lacks that failed before anything was sent, and its class; None if it failed otherwise.

    Args:
        said: the error's own text.
        missing: asked only if the text is about credentials or an address.
    """
    if _NO_CREDENTIALS.search(said):
        return ModelErrorCode.AUTHENTICATION, with_variables("no credentials", said, missing)
    if _NO_ADDRESS.search(said):
        return ModelErrorCode.INVALID_REQUEST, with_variables("no address", said, missing)
    package = _package(error, said)
    if package is None:
        return None
    # The model is not to be had here, so that a fallback is asked in its place.
    return (
        ModelErrorCode.MODEL_NOT_FOUND,
        f"a Python package that this provider needs is not installed: pip install {package}",
    )


def with_variables(what: str, said: str, missing: MissingVariables) -> str:
    """What went wrong with the variables that would mend it: those that litellm knows to be missing, or else those of
    the text; the text itself where it names none."""
    names = list(missing()) or list(dict.fromkeys(_VARIABLE.findall(said)))
    # Of several keys litellm takes any.
    between = " or " if all(name.endswith("_API_KEY") for name in names) else ", "
    return f"{what}; not in the environment: {between.join(names)}" if names else said


def _package(error: BaseException, said: str) -> str | None:
    """The package whose import failed, if that is what the call failed of and no more than something tried first."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ImportError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    advised = _PIP_INSTALL.search(said)
    if advised is not None:
        return advised[1]
    if str(cause) not in said or not cause.name:
        return None
    module = cause.name
    return next(
        (package for name, package in _PACKAGES.items() if module == name or module.startswith(f"{name}.")),
        module.partition(".")[0].replace("_", "-"),
    )
