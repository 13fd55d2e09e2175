"""The operator's secrets: what tools may use and models, logs and other hosts never see."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

from app.tools.errors import SecretError
from app.tools.hosts import HostPatterns, canonical_host

MIN_CHARS = 6  # a shorter one would be found, and replaced, everywhere


@dataclass(frozen=True, slots=True)
class Secret:
    """
    Args:
        hosts: where it may be sent; none, nowhere.
    """

    value: str = field(repr=False)
    hosts: HostPatterns = field(default_factory=HostPatterns)


class Secrets(Mapping[str, str]):
    """Secrets by name; as a mapping, their values by name. Its text shows names only.

    Raises:
        ValueError: a value is shorter than 6 characters; the text has its name.
    """

    def __init__(self, secrets: Mapping[str, Secret] | None = None) -> None:
        self._secrets = dict(secrets or {})
        forms: dict[str, str] = {}
        for name, secret in self._secrets.items():
            if len(secret.value) < MIN_CHARS:
                raise ValueError(f"the secret {name!r} is shorter than {MIN_CHARS} characters")
            for form in _forms(secret.value):
                forms.setdefault(form, f"[secret:{name}]")
        # The longest first: one secret may be part of another, and each is part of some of its own forms.
        self._marks = sorted(forms.items(), key=lambda pair: len(pair[0]), reverse=True)

    def __getitem__(self, name: str) -> str:
        return self._secrets[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._secrets)

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        return f"<Secrets: {', '.join(self._secrets) or 'none'}>"

    def value(self, name: str) -> str:
        """Raises: SecretError, if there is none of that name."""
        secret = self._secrets.get(name)
        if secret is None:
            raise SecretError(f"there is no secret {name!r}")
        return secret.value

    def for_host(self, name: str, host: str) -> str:
        """A secret on its way to a host.

        Raises:
            SecretError: it is not bound to that host, or there is none of that name; the text is the same.
        """
        secret = self._secrets.get(name)
        if secret is None or not secret.hosts.match(_canonical(host)):
            raise SecretError(f"there is no secret {name!r} for {host}")
        return secret.value

    def redacted(self, text: str) -> str:
        """The text with `[secret:name]` for every secret in it, also where it was escaped, or was encoded as base64."""
        for form, mark in self._marks:
            if form in text:
                text = text.replace(form, mark)
        return text


def _canonical(host: str) -> str:
    try:
        return canonical_host(host)
    except ValueError as error:
        raise SecretError(f"{host!r} {error}") from error


def _forms(value: str) -> Iterable[str]:
    """A value as it may stand in a text."""
    ascii_json = json.dumps(value)[1:-1]
    percent = quote(value, safe="")
    plain = {
        value,
        value.strip(),
        repr(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        ascii_json,
        ascii_json.replace("/", "\\/"),  # as PHP writes it
        percent,
        quote(value),
        quote_plus(value),
        _lower_escapes(percent),
    }
    return {form for form in plain | set(_base64_forms(value)) if len(form) >= MIN_CHARS}


def _lower_escapes(percent: str) -> str:
    first, *rest = percent.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _base64_forms(value: str) -> Iterable[str]:
    """What of base64 is the same whatever stands before and after the value, at each of the three ways to fall.

    Basic authentication encodes a name, a colon and the password together (RFC 7617, section 2).
    """
    raw = value.encode("utf-8", "surrogatepass")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            whole = encode(b"\0" * before + raw).decode().rstrip("=")
            start = (before * 8 + 5) // 6  # characters that hold a bit of what stands before
            end = (before + len(raw)) * 8 // 6  # and those whose every bit is the value's
            yield whole[start:end]
