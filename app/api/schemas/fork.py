"""What callers send to fork a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from app.api.schemas.content import RunInput, messages_of
from app.api.schemas.fields import AgentRef, JsonObject, RequestModel, ThreadId, example
from app.api.schemas.run_create import agent_form
from app.engine.agent import AgentDefinition
from app.services.forks import ForkRun


class RunFork(RequestModel):
    """Where a fork begins and what is different. What is not given is as the run that is forked has it."""

    model_config = example({"checkpoint_id": "6", "input": "Ask for the weather in Geneva instead."})

    checkpoint_id: str | None = Field(
        default=None, max_length=100, description="Absent: the last, or the start of a run that has not begun."
    )
    thread_id: ThreadId | None = Field(default=None, description="Of the fork's thread, which must be new.")
    input: RunInput | None = Field(
        default=None,
        description="A string is one user message. Absent: the model is called with the messages as they are, "
        "which takes a checkpoint whose next action is call_model.",
    )
    agent: (
        Annotated[
            Annotated[AgentRef, Tag("name")] | Annotated[AgentDefinition, Tag("definition")],
            Discriminator(agent_form),
        ]
        | None
    ) = Field(
        default=None,
        description="A name, `name@version`, or a whole definition. Absent: the version that the run has, "
        "with its overrides.",
    )
    context: JsonObject | None = Field(default=None, description="In place of the run's.")

    def command(self, run_id: str) -> ForkRun:
        """What is asked of the service."""
        return ForkRun(
            run_id=run_id,
            checkpoint_id=self.checkpoint_id,
            thread_id=self.thread_id,
            input=None if self.input is None else messages_of(self.input),
            agent=self.agent,
            context=self.context,
        )
