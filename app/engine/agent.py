"""What an agent is: a definition as data, and that definition resolved for one run."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from app.engine.limits import Limits, RunLimits
from app.engine.memories import MAX_NAMESPACE_CHARS, NAMESPACE_PATTERN
from app.engine.model import ModelPolicies
from app.engine.model_settings import Data, ModelPolicySettings, ModelSettings
from app.engine.policy import Rule
from app.engine.tool_definitions import Toolbox, ToolDefinition, ToolName

AGENT_NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,47}$"
AgentName = Annotated[str, StringConstraints(pattern=AGENT_NAME_PATTERN)]
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*\}\}")
_NAMESPACE = re.compile(NAMESPACE_PATTERN)
DeclaredName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")]


def _each_once(names: list[str]) -> list[str]:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"names twice: {', '.join(sorted(twice))}")
    return names


def _is_namespace(template: str) -> str:
    if _NAMESPACE.fullmatch(PLACEHOLDER.sub("x", template)) is None:
        raise ValueError("should be names without spaces with single slashes between them, as in users/{{ user_id }}")
    return template


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ToolNames = Annotated[list[ToolName], AfterValidator(_each_once)]
AgentNames = Annotated[list[AgentName], AfterValidator(_each_once)]


class LlmFailurePolicy(StrEnum):
    FAIL = "fail"
    DEGRADE = "degrade"


class ToolFailurePolicy(StrEnum):
    CONTINUE = "continue"
    DEGRADE = "degrade"
    FAIL = "fail"


class SubagentFailurePolicy(StrEnum):
    CONTINUE = "continue"
    DEGRADE = "degrade"
    FAIL = "fail"


class ApprovalDenialPolicy(StrEnum):
    """What a refused call does to its run; the model reads the refusal in any case."""

    CONTINUE = "continue"
    DEGRADE = "degrade"
    FAIL = "fail"


class OnLimit(StrEnum):
    FAIL = "fail"
    DEGRADE = "degrade"


class JoinPolicy(StrEnum):
    """When the delegations of one step are done."""

    ALL_REQUIRED = "all_required"
    ALLOW_OPTIONAL_FAILURES = "allow_optional_failures"
    FIRST_SUCCESS = "first_success"
    QUORUM = "quorum"


class InteractionMode(StrEnum):
    """Who answers a run's questions: nobody (the fallback applies at once), or somebody outside."""

    HEADLESS = "headless"
    EXTERNAL = "external"


class Fallback(StrEnum):
    """The decision that counts where nobody gave one."""

    DENY = "deny"
    APPROVE = "approve"


class PolicySettings(Data):
    rules: list[Rule] = Field(default_factory=list[Rule], max_length=256)

    @field_validator("rules")
    @classmethod
    def _ids_are_unique(cls, rules: list[Rule]) -> list[Rule]:
        _each_once([rule.rule_id for rule in rules])
        return rules


class InputFallback(Data):
    """The value that counts where nobody supplied one."""

    value: Any


_DELEGATE = "delegate_to_"


def delegate_tool(subagent: str) -> str:
    """The name of the tool through which a model delegates to a subagent."""
    return _DELEGATE + subagent


def subagent_name(tool: str) -> str:
    """The subagent that a tool made by `delegate_tool` delegates to."""
    return tool.removeprefix(_DELEGATE)


class AgentSettings(Data):
    """All of an agent but its name: the body of `PUT /agents/{name}`."""

    description: str | None = None
    model: ModelName = Field(examples=["openai/gpt-4o-mini"])
    fallback_models: Annotated[list[ModelName], AfterValidator(_each_once)] = Field(
        default_factory=list[str],
        max_length=8,
        description="Asked in order where the model cannot answer: its tries are spent, or its circuit is open.",
    )
    instructions: str = Field(
        default="",
        description="The system message; `{{ name.path }}` is filled from the run's `context`, nothing is evaluated.",
    )
    tools: ToolNames = Field(default_factory=list[str], max_length=128)
    tool_definitions: list[ToolDefinition] = Field(
        default_factory=list[ToolDefinition],
        max_length=64,
        description="HTTP tools, and tools that the caller runs. They need not be named in `tools`.",
    )
    mcp_servers: Annotated[list[DeclaredName], AfterValidator(_each_once)] = Field(
        default_factory=list[str],
        max_length=16,
        description="The operator's MCP servers all of whose tools the agent may use; "
        "single ones are named in `tools`, as `server__tool`.",
    )
    sandbox: DeclaredName | None = Field(default=None, description="The operator's sandbox profile for its tool calls.")
    memory_namespace: Annotated[str, AfterValidator(_is_namespace)] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_NAMESPACE_CHARS,
        description="Where `remember` and `recall` keep and find memories, such as `users/{{ user_id }}`: filled from "
        "the run's `context` and `user_id`. By default a namespace for each user, `agents/{name}/users/{user_id}`.",
    )
    subagents: AgentNames = Field(default_factory=list[str], max_length=32)
    join_policy: JoinPolicy = JoinPolicy.ALL_REQUIRED
    quorum: int | None = Field(
        default=None, ge=1, le=100, description="How many delegations must succeed, for `quorum`."
    )
    subagent_timeout_s: float = Field(
        default=120.0, gt=0, le=2_592_000, description="Seconds from a delegation to the end of its child run."
    )
    inherit_context_keys: list[str] = Field(
        default_factory=list[str],
        max_length=64,
        description="What this agent takes over, as a subagent, of its parent's context.",
    )
    policy: PolicySettings = PolicySettings()
    model_settings: ModelSettings = ModelSettings()
    response_schema: dict[str, Any] | None = Field(
        default=None,
        description="JSON Schema that the answer must fit; it is then `final_structured` of the result. "
        "The model gets two turns to correct an answer that does not.",
    )
    limits: Limits = Limits()
    llm_failure_policy: LlmFailurePolicy = LlmFailurePolicy.FAIL
    tool_failure_policy: ToolFailurePolicy = ToolFailurePolicy.CONTINUE
    subagent_failure_policy: SubagentFailurePolicy = SubagentFailurePolicy.CONTINUE
    approval_denial_policy: ApprovalDenialPolicy = ApprovalDenialPolicy.CONTINUE
    on_limit: OnLimit = OnLimit.FAIL
    context_defaults: dict[str, Any] = Field(default_factory=dict[str, Any])
    interaction_mode: InteractionMode = InteractionMode.HEADLESS
    approval_timeout_s: float = Field(default=300.0, gt=0, le=31_536_000)
    approval_fallback: Fallback = Fallback.DENY
    input_timeout_s: float = Field(default=300.0, gt=0, le=31_536_000)
    input_fallback: Literal["deny"] | InputFallback = Field(
        default="deny", description='`deny`, or {"value": ...} to go on with that.'
    )
    sanitize_tool_output: bool = True
    tool_output_max_chars: int = Field(default=12_000, ge=200, le=1_000_000)
    auto_compact_at_tokens: int | None = Field(
        default=None,
        ge=100,
        le=10_000_000,
        description="The length of a conversation, in tokens, from which on its older part is summarised before the "
        "next model call. Null: only where a provider says that it is too long.",
    )
    model_policies: ModelPolicySettings = ModelPolicySettings()
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])

    @field_validator("tool_definitions")
    @classmethod
    def _declares_each_once(cls, definitions: list[ToolDefinition]) -> list[ToolDefinition]:
        _each_once([definition.name for definition in definitions])
        return definitions

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.quorum is None) is (self.join_policy is JoinPolicy.QUORUM):
            needed = self.join_policy is JoinPolicy.QUORUM
            raise ValueError(f"quorum: {'needed by' if needed else 'only with'} join_policy: quorum")
        taken = {*self.tools, *map(delegate_tool, self.subagents)}
        for definition in self.tool_definitions:
            if definition.name in taken:
                raise ValueError(
                    f"tool_definitions: {definition.name!r} is named in tools or by a subagent as well; "
                    "a tool that is defined here need not be named"
                )
        return self


class AgentDefinition(AgentSettings):
    """An agent as data (YAML, REST): tools are named, never carried."""

    name: AgentName

    def content_hash(self) -> str:
        """SHA-256 over the definition's canonical JSON; equal content has an equal hash on every replica."""
        return hashlib.sha256(orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()


class AgentOverrides(Data):
    """What a request may change of its agent, for one run. `model_settings` are merged, the rest replaces.

    `limits` only lower the agent's. `resume_limits`, stated when a run was resumed, take the place of what stood: they
    are how a run that met a limit goes on.
    """

    model: ModelName | None = None
    instructions: str | None = None
    tools: ToolNames | None = Field(default=None, max_length=128)
    model_settings: ModelSettings | None = None
    response_schema: dict[str, Any] | None = None
    limits: Limits | None = None
    resume_limits: Limits | None = None
    interaction_mode: InteractionMode | None = None

    def resumed_with(self, limits: Limits | None) -> AgentOverrides:
        """These overrides after a resume that stated `limits`; limits of an earlier resume stand unless stated anew."""
        if limits is None:
            return self
        earlier = {} if self.resume_limits is None else self.resume_limits.model_dump(exclude_none=True)
        return self.model_copy(update={"resume_limits": Limits(**earlier | limits.model_dump(exclude_none=True))})


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """A definition that runs are pinned to. `version` is None for inline agents."""

    version_id: str
    definition: AgentDefinition
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ResolvedAgent:
    """An agent as one run uses it: the pinned version, the request's overrides and the service's defaults in one.

    Args:
        definition: what the version says; for settings that no request overrides.
    """

    name: str
    version: int | None
    version_id: str
    model: str
    instructions: str
    tools: tuple[str, ...]
    settings: dict[str, Any]
    response_schema: dict[str, Any] | None
    limits: RunLimits
    interaction_mode: InteractionMode
    definition: AgentDefinition
    policies: ModelPolicies = field(default_factory=ModelPolicies)

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    def may_use(self, tool_name: str) -> bool:
        """Whether the agent was given this tool: it is named, declared in the definition, or of a server that is."""
        definition = self.definition
        return (
            tool_name in self.tools
            or any(tool_name == declared.name for declared in definition.tool_definitions)
            or any(tool_name.startswith(f"{server}__") for server in definition.mcp_servers)
        )

    @property
    def toolbox(self) -> Toolbox:
        definition = self.definition
        return Toolbox(self.version_id, tuple(definition.tool_definitions), tuple(definition.mcp_servers))


def resolve(version: AgentVersion, overrides: AgentOverrides, defaults: RunLimits) -> ResolvedAgent:
    """One run's agent: the request's settings over the agent's over the service's; a request only lowers limits."""
    definition = version.definition
    settings = definition.model_settings.model_dump(exclude_none=True)
    if overrides.model_settings is not None:
        settings |= overrides.model_settings.model_dump(exclude_none=True)
    limits = defaults.replaced(definition.limits)
    if overrides.limits is not None:
        limits = limits.lowered(overrides.limits)
    if overrides.resume_limits is not None:
        limits = limits.replaced(overrides.resume_limits)
    return ResolvedAgent(
        name=definition.name,
        version=version.version,
        version_id=version.version_id,
        model=overrides.model or definition.model,
        instructions=definition.instructions if overrides.instructions is None else overrides.instructions,
        tools=tuple(definition.tools if overrides.tools is None else overrides.tools),
        settings=settings,
        response_schema=definition.response_schema if overrides.response_schema is None else overrides.response_schema,
        limits=limits,
        interaction_mode=overrides.interaction_mode or definition.interaction_mode,
        definition=definition,
        policies=definition.model_policies.resolved(),
    )


def value_at(path: str, context: dict[str, Any]) -> Any:
    """What `name.path` leads to. Raises: KeyError, nowhere."""
    value: Any = context
    for key in path.split("."):
        if not isinstance(value, dict):
            raise KeyError(key)
        value = value[key]  # pyright: ignore[reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]


def fill_placeholders(text: str, context: dict[str, Any]) -> str:
    """Fill `{{ name.path }}` from `context`; nothing is evaluated, and what the context lacks is left as it stands."""

    def replace(match: re.Match[str]) -> str:
        try:
            value = value_at(match[1], context)
        except KeyError:
            return match[0]
        return value if isinstance(value, str) else orjson.dumps(value).decode()

    return PLACEHOLDER.sub(replace, text)
