"""Which names of models can be used here, judged when an agent is saved; litellm is not imported for it."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from functools import cache

import orjson

from app.llm.json_values import as_object
from app.llm.pricing import bundled_prices, litellm_folder

OFFLINE = ("scripted", "demo")
OWN_PREFIXES = ("openai", "anthropic", *OFFLINE)

# Providers of litellm that answer chats but stand in neither of its two lists, or not in every release's.
_ALSO = frozenset(
    [
        "aiohttp_openai",
        "custom_openai",
        "hosted_vllm",
        "litellm_proxy",
        "llamafile",
        "lm_studio",
        "modelscope",
        "nadir",
        "nano-gpt",
        "nvidia_nim",
        "ollama_chat",
        "openai_like",
        "openrouter",
        "parasail",
        "sagemaker_nova",
        "vertex_ai_beta",
        "vllm",
        "xinference",
    ]
)


@cache
def litellm_prefixes() -> frozenset[str]:
    """The provider prefixes that litellm answers chats for.

    From two data files of the installed package: the providers in its price table and those in its list of
    endpoints.
    """
    path = litellm_folder() / "provider_endpoints_support_backup.json"
    listed = as_object(orjson.loads(path.read_bytes())).get("providers") if path.is_file() else None
    chatting = {
        name
        for name, provider in as_object(listed).items()
        if as_object(as_object(provider).get("endpoints")).get("chat_completions")
    }
    known = bundled_prices().providers | chatting | _ALSO
    # Not prefixes: what the price table calls families of one provider's models, such as
    # vertex_ai-language-models.
    families = {name for name in known if "-" in name and name.partition("-")[0] in known}
    return frozenset(known - families - {"", "bedrock_converse"} - {name for name in known if "/" in name})


def known_prefix(model: str, declared: Collection[str] = ()) -> bool:
    """Whether the model's name begins with the prefix of a provider that some client here answers for.

    Args:
        declared: the prefixes that the operator has given to servers.
    """
    prefix, slash, name = model.partition("/")
    return bool(slash and name) and (prefix in OWN_PREFIXES or prefix in declared or prefix in litellm_prefixes())


def problem_with_prefix(model: str, declared: Collection[str] = ()) -> str | None:
    """What is wrong with the form or prefix of a model's name, for people; None if nothing is."""
    if known_prefix(model, declared):
        return None
    prefix, slash, name = model.partition("/")
    others = "".join(f"{each}/, " for each in sorted(set(declared) - {"openai"} - litellm_prefixes()))
    known = (
        f"openai/ (any OpenAI-compatible server), anthropic/, {others}demo/, scripted/, "
        f"or one of litellm's {len(litellm_prefixes())} providers, such as gemini/, bedrock/ or ollama/"
    )
    if not slash or not prefix:
        return f"model {model!r} has no provider prefix, as in openai/gpt-4o-mini; known are: {known}"
    if not name:
        return f"model {model!r} has no name after its prefix"
    close = get_close_matches(prefix, [*declared, *OWN_PREFIXES, *litellm_prefixes()], n=1)
    hint = f"did you mean {close[0]}/{name}; " if close else ""
    return f"unknown provider {prefix!r} in model {model!r}; {hint}known are: {known}"
