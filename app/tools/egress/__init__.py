"""The way out: every request that a tool makes for a model, an agent's author or another server leads through here.

    addresses   which addresses belong to nobody but us     allowance   what the operator opens all the same
    target      a URL, taken apart and refused if odd       resolver    names to addresses that may be connected to
    exchange    a request, its bounds, its answer           body        an answer's body, unpacked within its bounds
    client      sends requests, and follows redirects

A name is resolved once for each connection, all of its addresses are checked, and exactly these are connected to; so a
name that changes its mind in between changes nothing. Redirects are taken one by one, each like a new request.
"""

from __future__ import annotations

from app.tools.egress.allowance import Allowance
from app.tools.egress.client import Egress
from app.tools.egress.exchange import Answer, Bounds, Request
from app.tools.egress.resolver import CheckedResolver, Lookup, system_lookup
from app.tools.egress.target import Target

__all__ = ["Allowance", "Answer", "Bounds", "CheckedResolver", "Egress", "Lookup", "Request", "Target", "system_lookup"]
