"""An inline agent can be sent with an idempotency key."""

from __future__ import annotations

from app.api.dependencies import idempotency_of
from app.api.schemas.run_create import RunCreate


def test_the_same_inline_agent_has_the_same_hash_and_another_one_another() -> None:
    def hash_of(model: str) -> bytes:
        body = RunCreate.model_validate({"agent": {"name": "a", "model": model}, "input": "hello"})
        key = idempotency_of("key", "create_run", body)
        assert key is not None
        return key.request_hash

    assert hash_of("demo/echo") == hash_of("demo/echo") != hash_of("demo/assistant")
