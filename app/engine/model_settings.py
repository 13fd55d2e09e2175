"""What a definition says about its model calls."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.engine.model import CachePolicy, ModelPolicies


class Data(BaseModel):
    """Part of a definition: strict, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Data):
    """Sampling settings, by their OpenAI names; what is absent is left to the provider."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    reasoning_effort: str | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class RetryPolicy(Data):
    max_attempts: int = Field(default=3, ge=1, le=10, description="Tries in all, the first included.")


class TimeoutPolicy(Data):
    first_byte_s: float = Field(default=60.0, gt=0, le=3600)
    between_chunks_s: float = Field(default=45.0, gt=0, le=3600)


class CacheSettings(Data):
    enabled: bool = False
    ttl_s: float = Field(default=3600.0, gt=0, le=2_592_000, description="Seconds for which an answer is kept.")
    any_temperature: bool = Field(
        default=False, description="Also for calls whose model_settings do not say temperature 0."
    )


class HedgingSettings(Data):
    after_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Seconds without a first piece after which the same call is made once more; null: never.",
    )


class ModelPolicySettings(Data):
    """How hard to try each model call."""

    retry: RetryPolicy = RetryPolicy()
    timeout: TimeoutPolicy = TimeoutPolicy()
    cache: CacheSettings = CacheSettings()
    coalescing: bool = Field(default=False, description="Equal calls at the same time are made once.")
    hedging: HedgingSettings = HedgingSettings()

    def resolved(self) -> ModelPolicies:
        return ModelPolicies(
            max_attempts=self.retry.max_attempts,
            first_byte_s=self.timeout.first_byte_s,
            between_chunks_s=self.timeout.between_chunks_s,
            cache=CachePolicy(self.cache.ttl_s, self.cache.any_temperature) if self.cache.enabled else None,
            coalesce=self.coalescing,
            hedge_after_s=self.hedging.after_s,
        )
