"""What callers send to create and steer runs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from app.api.schemas.content import RunInput, messages_of
from app.api.schemas.fields import AgentRef, JsonObject, Metadata, Moment, RequestModel, ThreadId, example
from app.engine.agent import AgentDefinition, AgentOverrides, InteractionMode, ToolNames
from app.engine.limits import Limits
from app.engine.model_settings import ModelSettings
from app.engine.records import OnBusyThread, OnDisconnect
from app.services.runs import CreateRun

_NO_OVERRIDES = AgentOverrides()


def agent_form(value: object) -> str:
    """Which of its two forms an agent is given in: a `name` or a `definition`."""
    return "definition" if isinstance(value, dict | AgentDefinition) else "name"


class RunCreate(RequestModel):
    """A run to create. What is not given is left to the agent, and then to the service."""

    model_config = example({"agent": "helper", "input": "What is the weather in Bern?"})

    agent: Annotated[
        Annotated[AgentRef, Tag("name")] | Annotated[AgentDefinition, Tag("definition")],
        Discriminator(agent_form),
        Field(description="A name, `name@version`, or a whole definition.", examples=["helper"]),
    ]
    input: RunInput
    thread_id: ThreadId | None = Field(default=None, description="Absent: a new thread.")
    context: JsonObject = Field(
        default_factory=dict[str, Any], description="Values for the instructions' `{{ name.path }}` and for tools."
    )
    metadata: Metadata = Field(default_factory=dict[str, str])
    limits: Limits | None = Field(default=None, description="Only lower the agent's own.")
    model: str | None = Field(
        default=None, min_length=1, max_length=200, description="Instead of the agent's.", examples=["demo/echo"]
    )
    instructions: str | None = Field(default=None, description="Instead of the agent's.")
    tools: ToolNames | None = Field(default=None, max_length=128, description="Instead of the agent's.")
    model_settings: ModelSettings | None = Field(default=None, description="Merged over the agent's.")
    response_schema: JsonObject | None = Field(
        default=None, description="JSON Schema that the answer must fit. Instead of the agent's."
    )
    on_busy_thread: OnBusyThread = Field(
        default=OnBusyThread.ENQUEUE, description="What to do while another run has the thread."
    )
    interaction_mode: InteractionMode | None = Field(
        default=None,
        description="Who answers the run's questions: nobody, or somebody outside. Instead of the agent's.",
    )
    on_disconnect: OnDisconnect = Field(
        default=OnDisconnect.CONTINUE,
        description="What becomes of the run when the caller of /runs/wait or /runs/stream goes away.",
    )
    start_after: Moment | None = Field(default=None, description="Not before this time.")
    user_id: str | None = None

    def command(self) -> CreateRun:
        """What is asked of the service."""
        return CreateRun(
            agent=self.agent,
            input=messages_of(self.input),
            thread_id=self.thread_id,
            context=self.context,
            metadata=self.metadata,
            overrides=self._overrides(),
            on_busy_thread=self.on_busy_thread,
            on_disconnect=self.on_disconnect,
            start_after=self.start_after,
            user_id=self.user_id,
        )

    def _overrides(self) -> AgentOverrides:
        if not self.model_fields_set & AgentOverrides.model_fields.keys():
            return _NO_OVERRIDES
        return AgentOverrides(
            model=self.model,
            instructions=self.instructions,
            tools=self.tools,
            model_settings=self.model_settings,
            response_schema=self.response_schema,
            limits=self.limits,
            interaction_mode=self.interaction_mode,
        )


class RunsCreate(RequestModel):
    """Runs to create together: all of them or none."""

    model_config = example({"items": [{"agent": "helper", "input": "What is the weather in Bern?"}]})

    items: list[RunCreate] = Field(min_length=1, max_length=100)


class RunResume(RequestModel):
    model_config = example({"limits": {"max_steps": 40}})

    limits: Limits | None = Field(
        default=None,
        description="In place of the limits that the run has now, higher ones too, up to the service's (`GET /info`); "
        "without it the wall time starts afresh. For runs that are paused, failed or interrupted.",
    )
