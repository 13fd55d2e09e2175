"""The tool that the benchmarked agent calls; TOOL_MODULES names this module."""

from __future__ import annotations

from app.tools import tool


@tool
async def look_up(city: str) -> dict[str, str]:
    """Tell the weather in a city.

    Args:
        city: the city's name.
    """
    return {"city": city, "weather": "sunny"}
