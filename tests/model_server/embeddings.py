"""Embeddings whose nearness is that of meaning, by a small dictionary: "tea" is near "beverage", far from "team"."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

MEANINGS: Sequence[frozenset[str]] = (
    frozenset({"tea", "coffee", "espresso", "beverage", "beverages", "drinks", "thirsty"}),
    frozenset({"seat", "window", "aisle", "sitting", "chair"}),
    frozenset({"dog", "puppy", "pet", "poodle"}),
    frozenset({"vegetarian", "meat", "diet", "meals", "food"}),
)
_REST = 8


def vector(text: str) -> list[float]:
    """A direction for each meaning, and a little of others for the words that have none."""
    numbers = [0.0] * (len(MEANINGS) + _REST)
    for word in re.findall(r"\w+", text.casefold()):
        known = [place for place, words in enumerate(MEANINGS) if word in words]
        if known:
            numbers[known[0]] += 1.0
        else:
            numbers[len(MEANINGS) + hashlib.sha256(word.encode()).digest()[0] % _REST] += 0.02
    return numbers if any(numbers) else [0.01] * len(numbers)


def embeddings_answer(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to POST /embeddings; in another order than asked for, as a server may send them."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [{"object": "embedding", "index": place, "embedding": vector(text)} for place, text in enumerate(texts)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": body["model"], "data": data[::-1], "usage": usage}
