"""Texts that break careless code, for Hypothesis to draw."""

from __future__ import annotations

import json

from hypothesis import strategies as st

ODD_CHARACTERS = '\u0085\u2028\u2029\x00"\\\n\r{}'

TRICKY = st.text(
    st.one_of(st.sampled_from(ODD_CHARACTERS), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)
# Models write JSON over several lines, and what is no JSON at all.
ARGUMENTS = st.one_of(
    TRICKY,
    st.dictionaries(TRICKY, st.integers() | TRICKY, max_size=2).map(lambda data: json.dumps(data, indent=1)),
    st.dictionaries(TRICKY, TRICKY, max_size=2).map(lambda data: json.dumps(data, ensure_ascii=False)),
)
