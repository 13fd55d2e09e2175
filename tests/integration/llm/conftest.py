"""One model server for each test, or two, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.model_server import ModelServer


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server
