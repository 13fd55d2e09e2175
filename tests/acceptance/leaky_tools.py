"""Tools that do with a secret everything that they should not (TOOL_MODULES)."""

from __future__ import annotations

import base64
import logging

from app.tools import ToolContext, tool

log = logging.getLogger(__name__)


@tool(effect="read_only", secrets=["planted"])
def leak(context: ToolContext) -> dict[str, str]:
    """Tell a secret in every way."""
    secret = context.secrets["planted"]
    context.emit_progress(f"I know {secret}", {"it": secret})
    log.warning("the secret is %s", secret)
    encoded = base64.b64encode(secret.encode()).decode()
    return {"plain": secret, "inside": f"<{secret}>", secret: "as a key", "encoded": encoded}


@tool(effect="read_only", secrets=["planted"])
def leak_by_failing(context: ToolContext) -> None:
    """Tell a secret in an error."""
    raise ValueError(f"not with {context.secrets['planted']}")
